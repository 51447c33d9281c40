#!/usr/bin/env bash
# CAP-m on SQuAD v1.1: contrastive pruning with the top-k masks of movement pruning (arXiv 2112.07198).
# Edit the variables here or set them from the environment; what follows the script's name goes to the command:
#   FINAL_TH=0.5 bash run_squad_topk_kd.sh --bf16
# DEMO=1 runs this very recipe in miniature on data that it makes: no network, no GPU, three minutes.
set -eu
[ "${DEMO:-0}" = 0 ] || exec python -m emmental.demo "$0" "$@"

GPU=${GPU:-}                      # visible GPUs, as in CUDA_VISIBLE_DEVICES; empty: as they are
NPROC=${NPROC:-1}                 # processes, one per GPU

DATA_DIR=${DATA_DIR:-}            # folder of train-v1.1.json and dev-v1.1.json; empty: rajpurkar/squad from the Hub
MODEL=${MODEL:-bert-base-uncased}

BATCH=${BATCH:-16}                # per process
EPOCH=${EPOCH:-10}
LR=${LR:-3e-5}

METHOD=${METHOD:-topK}
MASK_LR=${MASK_LR:-1e-2}
WARMUP=${WARMUP:-5400}            # steps, about one epoch
INITIAL_TH=${INITIAL_TH:-1}
FINAL_TH=${FINAL_TH:-0.1}         # fraction kept
REGULARIZATION=${REGULARIZATION:-null}
FINAL_LAMBDA=${FINAL_LAMBDA:-0}

CONTRASTIVE_TEMPERATURE=${CONTRASTIVE_TEMPERATURE:-0.1}
EXTRA_EXAMPLES=${EXTRA_EXAMPLES:-4096}
ALIGNREP=${ALIGNREP:-cls}
CL_UNSUPERVISED_LOSS_WEIGHT=${CL_UNSUPERVISED_LOSS_WEIGHT:-0.5}

TEACHER_TYPE=${TEACHER_TYPE:-bert}
TEACHER_PATH=${TEACHER_PATH:-teacher/squad}  # a folder, or a name on the Hub
CE_LOSS_WEIGHT=${CE_LOSS_WEIGHT:-0.1}
DISTILL_LOSS_WEIGHT=${DISTILL_LOSS_WEIGHT:-0.9}

SAVE_STEPS=${SAVE_STEPS:-30000}   # optimizer steps between checkpoints; 0: none
OUTPUT=${OUTPUT:-cap/$FINAL_TH/squad}

if [ -n "${TARGET_SPARSITY:-}" ]; then
    echo "$0: error: TARGET_SPARSITY $TARGET_SPARSITY: for the soft scripts; here FINAL_TH says what remains" >&2
    exit 2
fi

LAUNCH="python"
if [ "$NPROC" -gt 1 ]; then LAUNCH="torchrun --standalone --nproc_per_node $NPROC"; fi
if [ -n "$GPU" ]; then export CUDA_VISIBLE_DEVICES="$GPU"; fi

case $TEACHER_PATH in
    teacher/* | .* | /* | */*/*)  # a path: no name on the Hub looks like that
        if [ ! -d "$TEACHER_PATH" ]; then
            echo "$0: error: TEACHER_PATH $TEACHER_PATH: no such folder; this trains the teacher:" >&2
            echo "python masked_run_squad.py --model_type bert --model_name_or_path $MODEL" \
                ${DATA_DIR:+--data_dir "$DATA_DIR"} --output_dir "$TEACHER_PATH" --do_train --do_eval \
                --per_gpu_train_batch_size 16 --learning_rate 3e-5 --num_train_epochs 2 --save_steps 0 >&2
            exit 2
        fi ;;
esac

exec $LAUNCH masked_run_squad.py \
    --output_dir "$OUTPUT" \
    ${DATA_DIR:+--data_dir "$DATA_DIR"} \
    --model_type masked_bert \
    --model_name_or_path "$MODEL" \
    --do_train --do_eval \
    --per_gpu_train_batch_size "$BATCH" \
    --num_train_epochs "$EPOCH" \
    --learning_rate "$LR" \
    --mask_scores_learning_rate "$MASK_LR" \
    --warmup_steps "$WARMUP" \
    --initial_warmup 1 --final_warmup 2 \
    --pruning_method "$METHOD" --mask_init constant --mask_scale 0 \
    --initial_threshold "$INITIAL_TH" --final_threshold "$FINAL_TH" \
    --regularization "$REGULARIZATION" --final_lambda "$FINAL_LAMBDA" \
    --use_contrastive_loss \
    --contrastive_temperature "$CONTRASTIVE_TEMPERATURE" \
    --extra_examples "$EXTRA_EXAMPLES" \
    --alignrep "$ALIGNREP" \
    --cl_unsupervised_loss_weight "$CL_UNSUPERVISED_LOSS_WEIGHT" \
    --use_distill \
    --teacher_type "$TEACHER_TYPE" \
    --teacher_name_or_path "$TEACHER_PATH" \
    --ce_loss_weight "$CE_LOSS_WEIGHT" \
    --distill_loss_weight "$DISTILL_LOSS_WEIGHT" \
    --save_steps "$SAVE_STEPS" \
    "$@"
