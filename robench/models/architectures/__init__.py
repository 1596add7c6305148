"""Networks without weights, by name.

Every network here has the same three doors, named as in timm, so that training recipes and
attention methods need to know none of them:

* ``forward(inputs) -> logits``: (N, channels, H, W) → (N, num_classes);
* ``forward_features(inputs) -> maps``: the last feature map (N, C, h, w) after its ReLU, or a
  transformer's tokens (N, T, C);
* ``forward_head(maps, pre_logits=False)``: the logits of such a map, or the pooled features
  (N, C) before the classifier.

Parameter names are those of the papers' authors where a paper has published checkpoints.
"""
