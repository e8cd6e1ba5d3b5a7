"""OM-Net for MONAI: one-pass multi-task brain tumor segmentation with cross-task guided attention."""

__version__ = "0.16.0"
