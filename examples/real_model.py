"""A real model from the hub on a GPU: what it answers plain and under a method, and where it looks.

    python examples/real_model.py photo.jpg "Is there a dog in the image?"

The first run downloads 14 GB. On a CPU, or without the network: --model demo
"""

import argparse

import torch

import regaze
from regaze import VCD
from regaze.demo import IMAGE_DIR
from regaze.toolkit.viewer import answer_page


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of the hub, plain and under a method.")
    parser.add_argument("image", nargs="?", default=str(IMAGE_DIR / "scene_012.webp"), help="file")
    parser.add_argument("question", nargs="?", default="Is there a dog in the image?")
    parser.add_argument("--model", default="llava-hf/llava-1.5-7b-hf", help='a hub id, a folder or "demo"')
    parser.add_argument("--output", default="look.html", help="the page to click through")
    options = parser.parse_args()

    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    model, processor = regaze.load(options.model, dtype=dtype, device_map="auto" if gpu else None)
    gaze = regaze.wrap(model, processor)
    print(gaze)

    print("plain:", *gaze.ask(options.image, options.question))
    with gaze.using(VCD()):
        print("vcd:", *gaze.ask(options.image, options.question))
    page = answer_page(gaze, options.image, options.question, VCD(), model=options.model)
    print(f"every layer, head and token, plain and under vcd: {page.save(options.output)}")


if __name__ == "__main__":
    main()
