"""Record a generation, and plot what the answer's tokens attended to: image, question, the answer so far.

python examples/role_masses.py photo.jpg --model llava-hf/llava-1.5-7b-hf
"""

import argparse

import regaze
from regaze.demo import IMAGE_DIR
from regaze.toolkit import analysis, plot


def main() -> None:
    parser = argparse.ArgumentParser(description="What an answer's tokens attended to.")
    parser.add_argument("image", nargs="?", default=str(IMAGE_DIR / "scene_012.webp"), help="file")
    parser.add_argument("--prompt", default="Please describe this image in detail.")
    parser.add_argument("--model", default="demo", help='"demo", a hub id or a folder')
    parser.add_argument("--output", default="roles", help="beginning of the names of the files")
    options = parser.parse_args()

    gaze = regaze.wrap(*regaze.load(options.model))
    with gaze.recording() as record:  # a few numbers per layer, head and token: no attention matrix is kept
        print(*gaze.ask(options.image, options.prompt))
    record.save(f"{options.output}.safetensors")  # Record.load reads it

    flow = analysis.role_flow(record)
    plot.role_flow(flow, over="layers", path=f"{options.output}-layers.svg")
    plot.role_flow(flow, over="steps", path=f"{options.output}-tokens.svg")
    print(flow.to_dataframe().pivot_table(index="layer", values=["image", "query", "output"]).round(3))


if __name__ == "__main__":
    main()
