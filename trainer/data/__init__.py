"""From a split of a built dataset to batches on a replica.

In the order of the data: `splits` opens a split, `preprocessing` decodes and resizes a poster (the
only place that does, for training, evaluation and export alike). `rows` keeps decoded posters, or a
frozen backbone's features, and makes batches of them in the order of `order`; `stream` reads what
has no room. `pipeline` is what both share. `augmentation`, `rand_augment` and `mixing` change
posters in training; `test_time` averages predictions for several views of a poster.
"""
