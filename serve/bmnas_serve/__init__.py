"""Serve a bmnas bundle, or any ONNX model, with numpy and onnxruntime alone.

``manifest`` is the format of a bundle, ``session`` runs one, ``server`` answers the Open
Inference Protocol v2 over HTTP. Nothing here imports torch or the ``bmnas`` package.
"""
