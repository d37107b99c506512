"""What stands at the end of each command's help: lines to copy, most of which run on the bundled model."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "evaluate": (
        "regaze evaluate captions --method sparc",
        "regaze evaluate pope --split adversarial --method knockout --set 'heads=[[0,0],[0,3]]' --html 5",
        "regaze evaluate pope --data coco/pope --images coco/val2014 --method var "
        "--model llava-hf/llava-1.5-7b-hf --dtype float16 --batch-size 8",
    ),
    "compare": (
        "regaze compare captions --methods sparc,vcd,pai --limit 60 --controls",
        "regaze compare pope --methods gift --tune 'gift:alpha=1,2,4' --tune-split half",
        "regaze compare pope,chair --data hub --model Qwen/Qwen2.5-VL-3B-Instruct --methods var,vcd",
    ),
    "audit": ("regaze audit --quick", "regaze audit --plan plan.yaml --output out/audit"),
    "reproduce": (
        "regaze reproduce --list",
        "regaze reproduce demo-pope-vcd",
        "regaze reproduce llava15-7b-pope-vcd-greedy --dry",
    ),
    "sweep": ("regaze sweep captions --method sparc --grid alpha=1,1.05,1.1 --limit 60",),
    "score": (
        "regaze score pope out/run/answers.jsonl",
        "regaze score pope edited.jsonl --against plain.jsonl --data coco/pope --images coco/val2014",
    ),
    "benchmarks": ("regaze benchmarks", "regaze benchmarks repope", "regaze benchmarks get pope"),
    "heatmap": (
        "regaze heatmap scene_000 'Is there a train in the image?' --token train --layers 0",
        "regaze heatmap photo.jpg 'What is on the table?' --model llava-hf/llava-1.5-7b-hf --method var",
    ),
    "objects": ("regaze objects scene_000 --words train,backpack",),
    "view": (
        "regaze view scene_000 'Please describe this image in detail.' --method sparc",
        "regaze view one.jpg,two.jpg 'What differs?' --model Qwen/Qwen2.5-VL-3B-Instruct -o page.html",
    ),
    "heads": ("regaze heads HuggingFaceTB/SmolLM2-135M-Instruct --haystack essay.txt",),
    "fit": (
        "regaze fit vti -o vti.safetensors",
        "regaze fit vti --model llava-hf/llava-1.5-7b-hf --data pairs.jsonl --images photos",
    ),
    "inspect": (
        "regaze inspect demo --image scene_000 --prompt 'Is there a train?'",
        "regaze inspect Qwen/Qwen2.5-VL-3B-Instruct",
    ),
    "methods": ("regaze methods", "regaze methods var pai"),
    "serve": (
        "regaze serve demo --method knockout --set 'heads=[[0,0],[0,3]]'",
        "regaze serve llava-hf/llava-1.5-7b-hf --method var --port 8000",
    ),
    "doctor": ("regaze doctor",),
    "demo": ("regaze demo",),
    "bed": ("regaze bed fetch", "regaze bed"),
}


def epilog(command: str) -> str | None:
    """The examples of a command as the end of its help; None where there are none."""
    lines = EXAMPLES.get(command)
    # click wraps paragraphs, but not those that begin with this character.
    return None if lines is None else "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])
