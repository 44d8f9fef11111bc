"""The card that trainings start from and write: of the kind of model that this package trains."""

from inference.covid.card import ZhengCard as TrainingCard
from inference.covid.card import read_zheng_card as read_training_card

__all__ = ["TrainingCard", "read_training_card"]
