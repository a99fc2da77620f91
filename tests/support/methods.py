"""Every training method, as settings of a tiny run."""

from support.pictures import STEPS_PER_EPOCH

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig

EPOCHS = 5
STEPS = EPOCHS * STEPS_PER_EPOCH
# Weight decay is high, and one evaluation without improvement enough, so that either shows.
BASE = {"epochs": EPOCHS, "amp": "fp32", "weight_decay": 0.05, "plateau_patience": 0}
GROWING = {
    "start_image_size": 32,
    "image_size": 64,
    "eval_resize_size": 64,
    "image_size_multiple": 16,
    "grow_start_epoch": 1.0,
    "grow_end_epoch": 4.0,
}
STAGES = {"image_size": 64, "eval_resize_size": 64, "size_stages": "32:20,48:40,64:40"}
AVERAGE = {"ema_decay": 0.99, "ema_every_steps": 4, "ema_rescale": True}
METHODS = {
    "blurpool": {"blurpool": True},
    "zero_init_gamma": {"zero_init_gamma": False},
    "mixup": {"mixup_alpha": 0.2},
    "cutmix": {"cutmix_alpha": 1.0},
    "mixup and cutmix": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
    "trivial_augment": {"trivial_augment": True},
    "random_erasing": {"random_erasing": 1.0},
    "bce": {"loss": "bce"},
    "label_smoothing": {"label_smoothing": 0.1},
    "decay_norms": {"decay_norms": True},
    "decoupled_weight_decay": {"decoupled_weight_decay": True},
    "adamw": {"optimizer": "adamw"},
    "average": {"ema_decay": 0.9},
    "average now and then": AVERAGE,
    "progressive size": GROWING,
    "stages": STAGES,
    "stages in random order": {**STAGES, "shuffle_sizes": True},
    "alternate_flips": {"alternate_flips": True},
    "linear": {"anneal_strategy": "linear"},
    "three_phase": {"three_phase": True},
    "cycle_momentum": {"cycle_momentum": True},
    "warmup_cosine": {"schedule": "warmup_cosine", "warmup_epochs": 1.0},
    "step": {"schedule": "step", "step_epochs": 2},
    "plateau": {"schedule": "plateau"},
    "onecycle and plateau": {"plateau_epochs": 3},
}


def config_of(**changes: object) -> TrainConfig:
    return TrainConfig(**{**RECIPES["tiny"].settings, **BASE, **changes})
