"""From a finished distillation to a folder that can be uploaded, with a model card."""

from allmem.export.writing import export

__all__ = ["export"]
