"""From a split of a built dataset to batches on a replica.

In the order of the data: `splits` opens a split, `preprocessing` decodes and resizes a poster (the
only place that does, for training, evaluation and export alike), `augmentation` changes it, and so
do `rand_augment` and `mixing`, a batch at a time; `batching` puts examples in order and into
batches, `pipeline` joins these, and `caching` chooses what is kept. `features` does the same for
what a frozen backbone makes of posters, which `feature_computing` computes, and `feature_files`
keeps. `run_data` is what a run reads of all this. `test_time` averages the answers to variants of a
poster. Networks are in `trainer/models`.
"""
