#!/usr/bin/env bash
# From nothing to the tables of the paper (arXiv 2410.06169) for LLaVA-1.5-7B: one line, and one page at the end.
#
#     benchmarks/reproduce_llava.sh [OUTPUT]           # all of it; asks before it starts
#     YES=1 SAMPLES=200 benchmarks/reproduce_llava.sh  # 200 questions of each task, without asking
#
# 1. one search for plans at 0.75 to 0.12;
# 2. budgets 0.25 and 0.12: the pruned model, the dense one, the paper's recipe and every token pruner, on every task;
# 3. the sweep from 75 % to 19 %: the pruned model, the dense one and FastV;
# 4. heads dropped for visual tokens alone, and for text too;
# 5. time against the number of visual tokens;
# 6. report.html.
#
# Everything goes on where it was when the script is started again. What can be set:
#   RECIPE (auto: the search; interlaced: plans at once, from statistics alone), MODEL, TASKS, SWEEP_TASKS, CALIBRATION (questions to plan
#   on), PLAN_SAMPLES (how many of them), SAMPLES (of each task; default all), PROTOCOL, BATCH, DROP (heads), TOKENS (visual tokens of step 5;
#   none: leave it out), AGAINST, CARD (whose hours are told: H100, A100, "RTX 4090", ...), PYTHON.
set -euo pipefail

OUTPUT=${1:-reproduction}
MODEL=${MODEL:-llava-1.5-7b}
TASKS=${TASKS:-gqa,scienceqa,textvqa-ocr,pope,mme,mmbench,mmbench-cn}
SWEEP_TASKS=${SWEEP_TASKS:-gqa,pope,scienceqa}
AGAINST=${AGAINST:-fastv,pyramiddrop,sparsevlm,visionzip,divprune,cdpruner,dart,scope,random,downsample}
RECIPE=${RECIPE:-auto}
PROTOCOL=${PROTOCOL:-llava}
BATCH=${BATCH:-16}
DROP=${DROP:-20}
TOKENS=${TOKENS-576,1024,2304}
PYTHON=${PYTHON:-python}
CALIBRATION=${CALIBRATION:-}
PLAN_SAMPLES=${PLAN_SAMPLES:-128}
HERE=$(cd "$(dirname "$0")" && pwd)

yopo() { "$PYTHON" -m yopo_cli "$@"; }

mkdir -p "$OUTPUT"
"$PYTHON" "$HERE/reproduction_cost.py" "$MODEL" "$TASKS" "$SWEEP_TASKS" "$AGAINST" ${SAMPLES:+--samples "$SAMPLES"} \
    --plan-samples "$PLAN_SAMPLES" --card "${CARD:-H100}" $([[ $RECIPE == auto ]] && echo --search)
if [[ -z ${CALIBRATION} && $MODEL != demo ]]; then
    echo "CALIBRATION=FILE names no questions: plans are made on bundled shapes, which are unlike what this model is used for." >&2
fi
if [[ -z ${YES:-} ]]; then
    read -rp "Start? [y/N] " answer
    [[ $answer == [yY]* ]] || exit 1
fi

planned_on=(--samples "$PLAN_SAMPLES" ${CALIBRATION:+--calibration "$CALIBRATION"})
asked=(--protocol "$PROTOCOL" --batch-size "$BATCH" ${SAMPLES:+--samples "$SAMPLES"})
[[ -n $CALIBRATION ]] && on=(--calibration "$CALIBRATION") || on=()

if [[ $RECIPE == auto ]]; then
    from=(--frontier "$OUTPUT/frontier.json")
    [[ -f $OUTPUT/frontier.json ]] || yopo plan "$MODEL" --budgets 0.75,0.5,0.37,0.25,0.19,0.12 "${planned_on[@]}" -o "$OUTPUT/frontier.json"
else
    from=(--recipe "$RECIPE" --statistics "$OUTPUT/statistics")
fi

pruned() { # BUDGET
    [[ -d $OUTPUT/$1 ]] || yopo convert "$MODEL" --budget "$1" "${from[@]}" "${planned_on[@]}" -o "$OUTPUT/$1"
}

for budget in 0.25 0.12; do
    pruned $budget
    yopo eval "$OUTPUT/$budget" --task "$TASKS" --against "$AGAINST" --recipe yopo "${on[@]}" "${asked[@]}" \
        --save "$OUTPUT/table-$budget.jsonl" | tee "$OUTPUT/table-$budget.txt"
done

for budget in 0.75 0.5 0.37 0.19; do
    pruned $budget
    yopo eval "$OUTPUT/$budget" --task "$SWEEP_TASKS" --against fastv "${asked[@]}" --save "$OUTPUT/sweep-$budget.jsonl" \
        | tee "$OUTPUT/sweep-$budget.txt"
done

"$PYTHON" "$HERE/heads_of_text.py" "$MODEL" --drop "$DROP" --task "$SWEEP_TASKS" --protocol "$PROTOCOL" ${SAMPLES:+--samples "$SAMPLES"} \
    "${on[@]}" --calibration-samples "$PLAN_SAMPLES" -o "$OUTPUT/heads-of-text.json"

times=()
if [[ -n $TOKENS ]]; then
    if [[ ! -f $OUTPUT/bench.jsonl ]]; then
        yopo bench "$MODEL" --random-weights --budget 0.25 --budget 0.12 --visual-tokens "$TOKENS" --against fastv,divprune --json \
            > "$OUTPUT/bench.part"
        mv "$OUTPUT/bench.part" "$OUTPUT/bench.jsonl"
    fi
    times=("$OUTPUT/bench.jsonl")
fi
[[ -f $OUTPUT/attention.json ]] || yopo inspect "$OUTPUT/0.12" --attention "$OUTPUT/attention.json" --samples 32 "${on[@]}"

yopo report "$OUTPUT"/table-*.jsonl "$OUTPUT"/sweep-*.jsonl "$OUTPUT/heads-of-text.json" "$OUTPUT/0.25" "$OUTPUT/0.12" \
    "$OUTPUT/attention.json" "${times[@]}" -o "$OUTPUT/report.html" --title "$MODEL: the paper's tables"
