"""Where a model looks while it reads a word of your question about your picture.

python examples/heatmap_of_a_word.py photo.jpg "Is there a dog in the image?" dog
"""

import argparse

import regaze
from regaze.demo import IMAGE_DIR
from regaze.toolkit import plot


def main() -> None:
    parser = argparse.ArgumentParser(description="Where a model looks for a word.")
    parser.add_argument("image", nargs="?", default=str(IMAGE_DIR / "scene_012.webp"), help="file")
    parser.add_argument("question", nargs="?", default="Is there a dog in the image?")
    parser.add_argument("word", nargs="?", help="of the question or the answer [what is asked about]")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[0], help="averaged [0, the demo's for words]"
    )
    parser.add_argument("--model", default="demo", help='"demo", a hub id or a folder')
    parser.add_argument("--output", default="heatmap.png", help=".png, .svg or .pdf")
    options = parser.parse_args()

    gaze = regaze.wrap(*regaze.load(options.model))
    with gaze.recording(slices="image", rows="text") as record:
        (answer,) = gaze.ask(options.image, options.question)
    plot.heatmap(record, options.image, token=options.word, layers=options.layers, path=options.output)
    print(f"{options.question} {answer}\n{options.output}")


if __name__ == "__main__":
    main()
