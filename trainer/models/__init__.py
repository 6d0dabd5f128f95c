"""Networks by name, one file a family, with the layers, losses and weights that they are made of.

`registry.create_model` makes any of them: a model maps uint8 posters [N, S, S, 3] to float32
logits [N, G], one for each genre; the probability of a genre is the logit's sigmoid. What reads
posters is in `trainer/data`; how a step is spread over replicas is in `trainer/steps.py`.
"""
