#!/usr/bin/env bash
# CAP-soft on a GLUE task: contrastive pruning with soft movement pruning (arXiv 2112.07198).
# Edit the variables here or set them from the environment; what follows the script's name goes to the command:
#   TASK=mnli FINAL_LAMBDA=290 bash run_glue_soft_kd.sh --bf16
# CONTRAST=0 is soft movement pruning; DISTILL=0 leaves out distillation.
# DEMO=1 runs this very recipe in miniature on data that it makes: no network, no GPU, three minutes.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: error: start it with bash" >&2; exit 2; }
set -eu
here=$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")
[ -e "$here/masked_run_glue.py" ] || here=.   # a batch system runs a copy; submit it from the repository's folder
[ -e "$here/masked_run_glue.py" ] || { echo "$0: error: start it in the repository's folder" >&2; exit 2; }

GPU=${GPU:-}                      # visible GPUs, as in CUDA_VISIBLE_DEVICES; empty: as they are
NPROC=${NPROC:-1}                 # processes, one per GPU
SEED=${SEED:-42}

TASK=${TASK:-qqp}
TASK=$(echo "$TASK" | tr "[:upper:]" "[:lower:]")
DATA_DIR=${DATA_DIR:-}            # folder of the official TSV files; empty: nyu-mll/glue from the Hub
MODEL=${MODEL:-bert-base-uncased}  # or roberta-base and so on: its config tells the family
BATCH=${BATCH:-32}                # of all NPROC processes together; of each one where LAUNCH starts several
EPOCH=${EPOCH:-10}
LR=${LR:-3e-5}

METHOD=${METHOD:-sigmoied_threshold}
MASK_LR=${MASK_LR:-1e-2}
case $TASK in                     # WARMUP in steps: published for QQP, ours for MNLI; else, or empty, one epoch
    qqp) WARMUP=${WARMUP-11000} ;;
    mnli) WARMUP=${WARMUP-12000} FINAL_LAMBDA=${FINAL_LAMBDA:-680} ;;
esac
INITIAL_TH=${INITIAL_TH:-0}
FINAL_TH=${FINAL_TH:-0.1}         # what a score's sigmoid must exceed
REGULARIZATION=${REGULARIZATION:-l1}
FINAL_LAMBDA=${FINAL_LAMBDA:-550} # published: QQP 190 (prunes 90 %), 550 (97 %); MNLI 290, 680
TARGET_SPARSITY=${TARGET_SPARSITY:-}  # fraction pruned, in place of a FINAL_LAMBDA found by trial; empty: no target

CONTRAST=${CONTRAST:-1}           # 0: without the contrastive losses
CONTRASTIVE_TEMPERATURE=${CONTRASTIVE_TEMPERATURE:-0.1}
EXTRA_EXAMPLES=${EXTRA_EXAMPLES:-4096}
ALIGNREP=${ALIGNREP:-cls}
CL_UNSUPERVISED_LOSS_WEIGHT=${CL_UNSUPERVISED_LOSS_WEIGHT:-0.1}
CL_SUPERVISED_LOSS_WEIGHT=${CL_SUPERVISED_LOSS_WEIGHT:-10}

DISTILL=${DISTILL:-1}             # 0: without distillation; the task's own loss then has weight 1
TEACHER_TYPE=${TEACHER_TYPE:-dense}  # masked: a pruned one; its config tells the family
TEACHER_PATH=${TEACHER_PATH:-teacher/$TASK}  # a folder, or a name on the Hub; needed unless both are 0
if [ "$DISTILL" = 0 ]; then CE_LOSS_WEIGHT=${CE_LOSS_WEIGHT:-1}; fi
CE_LOSS_WEIGHT=${CE_LOSS_WEIGHT:-0.1}
DISTILL_LOSS_WEIGHT=${DISTILL_LOSS_WEIGHT:-0.9}

SAVE_STEPS=${SAVE_STEPS:-30000}   # optimizer steps between checkpoints; 0: none
NAME=soft-cap
[ "$METHOD" = sigmoied_threshold ] || NAME=soft-cap-$METHOD
if [ "$CONTRAST" = 0 ]; then NAME=$METHOD; fi
if [ "$DISTILL" = 0 ]; then NAME=$NAME-no-kd; fi
if [ -n "$TARGET_SPARSITY" ]; then AMOUNT=sparsity-$TARGET_SPARSITY; else AMOUNT=lambda-$FINAL_LAMBDA; fi
OUTPUT=${OUTPUT:-$NAME/$AMOUNT/$TASK}

LAUNCH=${LAUNCH:-python}          # or a torchrun command of your own, for several nodes
refuse() { echo "$0: error: $1" >&2; exit 2; }
for name in DEMO CONTRAST DISTILL; do [[ ${!name:-0} == [01] ]] || refuse "$name ${!name}: 0 or 1"; done
[[ -z $GPU || $GPU, =~ ^((-1|[0-9]+|(GPU|MIG)-[[:alnum:]/-]+),)+$ ]] || refuse "GPU $GPU: numbers or UUIDs, as in 0,1"
[ "$NPROC" -ge 1 ] 2> /dev/null || refuse "NPROC $NPROC: a number, at least 1"
[ "$NPROC" -eq 1 ] || [ "$LAUNCH" = python ] || refuse "NPROC and LAUNCH: give one of them"
if [ -n "$GPU" ]; then export CUDA_VISIBLE_DEVICES="$GPU"; fi
if [ "${DEMO:-0}" = 1 ]; then PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec python -m emmental.demo "$0" "$@"; fi
if [ "$NPROC" -gt 1 ]; then
    [ "$BATCH" -ge 1 ] 2> /dev/null || refuse "BATCH $BATCH: a number, at least 1"
    [ $((BATCH % NPROC)) -eq 0 ] || refuse "BATCH $BATCH: a multiple of NPROC, $NPROC"
    BATCH=$((BATCH / NPROC)) LAUNCH="torchrun --standalone --nproc_per_node $NPROC"
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-1800}  # seconds to save in when stopped

if [ -n "${WARMUP:-}" ]; then warmup="--warmup_steps $WARMUP"; else warmup="--warmup_epochs 1"; fi
# what depends on the switches goes before the user's own flags, which win
[ "$CONTRAST$DISTILL" = 00 ] || set -- --teacher_type "$TEACHER_TYPE" --teacher_name_or_path "$TEACHER_PATH" "$@"
[ "$DISTILL" = 0 ] || set -- --use_distill --distill_loss_weight "$DISTILL_LOSS_WEIGHT" "$@"
[ "$CONTRAST" = 0 ] || set -- --use_contrastive_loss --contrastive_temperature "$CONTRASTIVE_TEMPERATURE" \
    --extra_examples "$EXTRA_EXAMPLES" --alignrep "$ALIGNREP" \
    --cl_unsupervised_loss_weight "$CL_UNSUPERVISED_LOSS_WEIGHT" \
    --cl_supervised_loss_weight "$CL_SUPERVISED_LOSS_WEIGHT" "$@"
exec $LAUNCH "$here/masked_run_glue.py" --task_name "$TASK" ${DATA_DIR:+--data_dir "$DATA_DIR"} --output_dir "$OUTPUT" \
    --do_train --do_eval --model_type masked --model_name_or_path "$MODEL" --save_steps "$SAVE_STEPS" \
    --seed "$SEED" --per_gpu_train_batch_size "$BATCH" --num_train_epochs "$EPOCH" --learning_rate "$LR" \
    --mask_scores_learning_rate "$MASK_LR" $warmup --initial_warmup 2 --final_warmup 3 \
    --pruning_method "$METHOD" --mask_init constant --mask_scale 0 \
    --initial_threshold "$INITIAL_TH" --final_threshold "$FINAL_TH" --ce_loss_weight "$CE_LOSS_WEIGHT" \
    --regularization "$REGULARIZATION" --final_lambda "$FINAL_LAMBDA" \
    ${TARGET_SPARSITY:+--target_sparsity "$TARGET_SPARSITY"} "$@"
