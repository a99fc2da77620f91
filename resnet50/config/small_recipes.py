"""This project's own recipes, for data sets that one small GPU, or a CPU, can train on."""

from resnet50.config.recipe import Recipe

OURS = "this project"
# From scratch on 10,000 to 100,000 pictures: larger crops than ImageNet's, more regularization.
ONE_SMALL_GPU = {
    "min_crop_scale": 0.25,
    "total_batch_size": 256,
    "device_batch_size": 128,
    "max_lr": 0.2,
    "nesterov": True,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.2,
    "random_erasing": 0.1,
    "ema_decay": 0.998,
}

SMALL: dict[str, Recipe] = {
    "tiny-imagenet": Recipe(
        summary="Tiny-ImageNet, 200 classes, 100,000 images of 64 px; for one small GPU",
        settings={
            **ONE_SMALL_GPU,
            "epochs": 60,
            # Its pictures are enlarged: at 64 px ResNet50's last stage would see 2x2.
            "start_image_size": 96,
            "image_size": 128,
            "grow_start_epoch": 20.0,
            "grow_end_epoch": 45.0,
            "eval_resize_size": 128,
        },
        top1=None,
        top5=None,
        evaluated="128 px, whole pictures",
        source=OURS + ", not yet run",
    ),
    "mini-imagenet": Recipe(
        summary="mini-ImageNet, 100 classes, 60,000 images less validation; for one small GPU",
        settings={
            **ONE_SMALL_GPU,
            "epochs": 80,
            "start_image_size": 128,
            "image_size": 160,
            "grow_start_epoch": 30.0,
            "grow_end_epoch": 60.0,
            "eval_image_size": 192,
        },
        top1=None,
        top5=None,
        evaluated="192 px",
        source=OURS + ", not yet run",
    ),
    "imagenette": Recipe(
        summary="Imagenette, 10 classes, 9,469 images; for one small GPU",
        settings={
            **ONE_SMALL_GPU,
            "epochs": 80,
            "start_image_size": 96,
            "image_size": 128,
            "grow_start_epoch": 30.0,
            "grow_end_epoch": 60.0,
            "eval_image_size": 160,
            "total_batch_size": 64,
            "device_batch_size": 64,
            "max_lr": 0.05,
            "mixup_alpha": 0.0,
            "ema_decay": 0.995,
        },
        top1=None,
        top5=None,
        evaluated="160 px",
        source=OURS + ", not yet run",
    ),
    "small": Recipe(
        summary="a few thousand photographs of a few classes, five minutes on two CPU cores",
        # From benchmarks/methods.py; benchmarks/README.md. It is tested at the size of training:
        # after so few epochs, larger pictures cost points, which they gain on ImageNet.
        settings={
            "epochs": 6,
            "image_size": 40,
            "eval_resize_size": 40,
            "min_crop_scale": 0.5,
            "total_batch_size": 32,
            "device_batch_size": 32,
            "optimizer": "adamw",
            "max_lr": 2e-3,
            "anneal_strategy": "linear",
            "pct_start": 0.1,
            "weight_decay": 0.05,
            "label_smoothing": 0.1,
            "ema_decay": 0.98,
        },
        # Seeds 0 to 4: 67.04, 66.48, 66.48, 66.20, 65.64; benchmarks/time_to_accuracy.py.
        top1=66.4,
        top5=None,
        evaluated="40 px, clothing-dataset-small, validation and test, mean of 5 seeds",
        source=OURS,
    ),
    "demo": Recipe(
        summary="Fashion-MNIST at 32 px, minutes on a laptop's CPU",
        # From benchmarks/methods.py and three trials after it: benchmarks/README.md. Whole
        # pictures, since the objects fill them.
        settings={
            "epochs": 1,
            "image_size": 32,
            "eval_resize_size": 32,
            "min_crop_scale": 1.0,
            "total_batch_size": 96,
            "optimizer": "adamw",
            "max_lr": 2e-3,
            "anneal_strategy": "linear",
            "pct_start": 0.1,
            "weight_decay": 0.05,
            "label_smoothing": 0.1,
            "ema_decay": 0.965,
            "max_minutes": 11.0,
        },
        # Seeds 0 to 4: 88.40, 88.60, 88.44, 87.97, 87.84; benchmarks/time_to_accuracy.py.
        top1=88.2,
        top5=99.7,
        evaluated="32 px, its 10,000 test images, mean of 5 seeds",
        source=OURS,
    ),
    "tiny": Recipe(
        summary="a ResNet of 0.1 M parameters at 32 px, for tests that kill it again and again",
        settings={
            "layers": (1, 1, 1, 1),
            "width": 8,
            "epochs": 2,
            "image_size": 32,
            "eval_resize_size": 32,
            "total_batch_size": 16,
            "device_batch_size": 8,
            "max_lr": 0.05,
            "num_workers": 0,
        },
        top1=None,
        top5=None,
        evaluated="32 px; it exists for the tests",
        source=OURS,
    ),
}
