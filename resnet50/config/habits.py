"""What options of other training scripts are called here. Standard library, Python 3.10.

The names are those of PyTorch's examples and references, timm, Ultralytics, Lightning and the
Hugging Face Trainer, where users learned them. `resnet50/config/command_line.py` looks here when
a command line has an unknown option.
"""

import difflib
from collections.abc import Collection, Mapping

SAME_COMMAND = "no option is needed: the same command with the same --run_dir resumes"
EVERY_GPU = "no option is needed: all GPUs are used; CUDA_VISIBLE_DEVICES picks some"
# Names used elsewhere, and the equivalent here: the first option that the command has, or a text.
MEANINGS: Mapping[str, tuple[str, ...]] = {
    "batch batch_size b bs train_batch_size global_batch_size": ("total_batch_size", "batch_size"),
    "per_device_train_batch_size micro_batch_size batch_size_per_gpu": ("device_batch_size",),
    "lr learning_rate base_lr peak_lr blr lr0": ("max_lr",),
    "workers j num_worker nworkers dataloader_num_workers cpu_workers threads": ("num_workers",),
    "data data_path dataset dataset_dir data_root data_folder root d imagenet_dir train_dir "
    "train_data_dir": ("data_dir",),
    "output output_dir out_dir outdir out save_dir save_path log_dir logdir checkpoint_dir "
    "ckpt_dir work_dir exp_dir default_root_dir o": ("run_dir", "out", "report"),
    "epoch e num_epochs n_epochs num_train_epochs max_epochs nepochs": ("epochs",),
    "img_size imgsz img input_size crop_size resolution size train_crop_size": ("image_size",),
    "val_crop_size test_input_size eval_crop_size val_size": ("eval_image_size", "image_size"),
    "val_resize_size resize": ("eval_resize_size", "resize_size"),
    "checkpoint ckpt ckpt_path checkpoint_path model_path weights_path weight load finetune "
    "pretrained_weights initial_checkpoint weights": ("weights", "init_from"),
    "wd decay": ("weight_decay",),
    "opt optim": ("optimizer",),
    "sched scheduler lr_scheduler lr_scheduler_type lr_policy": ("schedule",),
    "warmup lr_warmup_epochs": ("warmup_epochs",),
    "lr_step_size step_size decay_epochs": ("step_epochs",),
    "lr_gamma gamma decay_rate": ("step_factor",),
    "smoothing label_smooth": ("label_smoothing",),
    "mixup": ("mixup_alpha",),
    "cutmix": ("cutmix_alpha",),
    "random_erase reprob random_erase_prob": ("random_erasing",),
    "ema model_ema model_ema_decay": ("ema_decay",),
    "clip_grad grad_clip max_grad_norm gradient_clip_val": ("clip_grad_norm",),
    "random_seed manual_seed": ("seed",),
    "fp16 bf16 half precision mixed_precision use_amp dtype": ("amp",),
    "torchcompile torch_compile": ("compile",),
    "print_freq p log_interval log_every logging_steps": ("log_every_steps",),
    "save_freq save_interval save_every checkpoint_interval": ("save_every_minutes",),
    "val_interval eval_interval val_freq eval_freq": ("eval_every_epochs",),
    "iterations num_steps total_steps max_iters": ("max_steps",),
    "save_total_limit checkpoint_hist": ("keep_checkpoints",),
    "config cfg preset": ("recipe",),
    "image picture input input_dir": ("images",),
    "push_to_hub hub_model_id repo_id": ("hub",),
    "server_name address ip share": ("host",),
    "resume r auto_resume resume_from resume_from_checkpoint continue": ("weights", SAME_COMMAND),
    "pretrained use_pretrained": ("--init_from torchvision", "--weights torchvision"),
    "evaluate eval test eval_only val_only test_only validate": (
        "python evaluate.py --data_dir DIR --weights runs/NAME",
    ),
    "gpu gpus gpu_id gpu_ids num_gpus n_gpus ngpus ngpu devices device_ids nproc_per_node": (
        EVERY_GPU,
    ),
    "local_rank rank world_size dist_url dist_backend multiprocessing_distributed distributed ddp "
    "strategy": (EVERY_GPU,),
    "device cpu no_cuda accelerator": (
        "--device cpu",
        "a GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it",
    ),
    "arch a model model_name backbone net": (
        "--recipe NAME, or --layers and --width: the model is a ResNet50",
        "no option is needed: the weights tell which network it is",
    ),
}
HABITS = {name: here for names, here in MEANINGS.items() for name in names.split()}


def suggestion(option: str, known: Collection[str]) -> str:
    """What an option that a command does not have may mean, in a few words; empty if nothing is
    similar.

    option, known: as typed, with their hyphens.
    """
    choices = HABITS.get(option.lstrip("-"), ())
    for choice in choices:
        name = choice if choice.startswith("--") else f"--{choice}"
        is_text = " " in choice and not choice.startswith("--")
        if is_text or name.split()[0] in known:
            return choice if is_text or ":" in choice else f"did you mean {name}?"
    if choices:  # its meaning is known, and this command has nothing like it
        return ""
    nearest = difflib.get_close_matches(option, [name for name in known if len(name) > 2], n=1)
    return f"did you mean {nearest[0]}?" if nearest and len(option) > 2 else ""
