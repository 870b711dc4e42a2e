"""Every public argument of Trainer and TrainingArguments is honoured by VideoTrainer, or refused by
name.
"""

import dataclasses
import inspect

import pytest
from tiny import tiny_model
from transformers import Trainer, TrainingArguments

from hf_timesformer.data.clips import TrainingClips
from hf_timesformer.data.row_source import RecordSource
from hf_timesformer.training.arguments import VideoTrainingArguments
from hf_timesformer.training.refused_arguments import REFUSED, REFUSED_FOR_CLIPS
from hf_timesformer.training.trainer import VideoTrainer


# What is done about each argument; those of Trainer's own loop, devices, logs and uploads are left
# to it.
HONOURED_HERE = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate optim optim_args weight_decay
optim_target_modules gradient_accumulation_steps average_tokens_across_devices label_smoothing_factor
auto_find_batch_size logging_nan_inf_filter eval_strategy per_device_eval_batch_size save_only_model save_strategy
save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_strategy load_best_model_at_end
metric_for_best_model seed data_seed dataloader_num_workers remove_unused_columns ddp_find_unused_parameters fsdp
fsdp_config resume_from_checkpoint accelerator_config lr_scheduler_type warmup_steps use_cpu dataloader_pin_memory
logging_steps
"""
TRAINERS_OWN = """
lr_scheduler_kwargs adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 bf16_full_eval fp16_full_eval tf32
activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps logging_strategy logging_first_step
log_on_each_node include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
trackio_space_id trackio_bucket_id trackio_static_space_id eval_steps eval_delay prediction_loss_only eval_on_start
eval_use_gather_object eval_accumulation_steps include_for_metrics save_steps save_on_each_node hub_private_repo
hub_model_id hub_always_push hub_revision greater_is_better ignore_data_skip
restore_callback_states_from_checkpoint full_determinism dataloader_drop_last dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order length_column_name
ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout deepspeed debug
skip_memory_metrics do_train do_eval local_rank
"""
OF_TRAINER = """
model args data_collator train_dataset eval_dataset processing_class model_init compute_loss_func compute_metrics
callbacks optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics
"""
EXAMPLES = {
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "parallelism_config": object(),
    "label_names": ["targets"],
    "do_predict": True,
    "train_sampling_strategy": "sequential",
}


def test_every_argument_is_honoured_or_refused_and_none_is_both():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    lists = [*HONOURED_HERE.split(), *TRAINERS_OWN.split(), *REFUSED, *REFUSED_FOR_CLIPS]
    assert fields - set(lists) == set(), (
        "new in transformers: see to it that VideoTrainer honours or refuses them"
    )
    assert len(lists) == len(set(lists))
    parameters = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert parameters == set(OF_TRAINER.split())


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_FOR_CLIPS])
def test_what_is_refused_is_refused_by_name(name, tmp_path):
    args = VideoTrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no")
    setattr(args, name, EXAMPLES[name])
    clips = TrainingClips(RecordSource([0]), None, None, label_ids=[], seed=0)
    with pytest.raises(ValueError, match=f"--{name} .* does not go with VideoTrainer: "):
        VideoTrainer(model=tiny_model("axial"), args=args, train_dataset=clips)
    if name in REFUSED_FOR_CLIPS:
        VideoTrainer(model=tiny_model("axial"), args=args, train_dataset=[0])


def test_ways_to_deal_out_clips_that_do_not_fit(tmp_path):
    clips = TrainingClips(RecordSource([0]), None, None, label_ids=[], seed=0)
    for name in ("split_batches", "dispatch_batches"):
        args = VideoTrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            eval_strategy="no",
            accelerator_config={name: True},
        )
        with pytest.raises(
            ValueError, match=f"accelerator_config {name} does not go with VideoTrainer"
        ):
            VideoTrainer(model=tiny_model("axial"), args=args, train_dataset=clips)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_sharding_that_accelerate_leaves_out_on_cpus_is_refused(name, tmp_path, monkeypatch):
    trainer = VideoTrainer(
        model=tiny_model("axial"),
        args=VideoTrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no"),
    )
    monkeypatch.setattr(trainer.args, name, True)
    with pytest.raises(ValueError, match=f"--{name} does nothing on CPUs"):
        trainer._check_parallel()


def test_arguments_of_another_kind(tmp_path):
    with pytest.raises(TypeError, match="takes VideoTrainingArguments, not TrainingArguments"):
        VideoTrainer(
            model=tiny_model("axial"),
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True),
        )
