"""The people of a COCO keypoint file that a model of masks and joints shall learn by heart.

    python benchmarks/people.py data/coco_small/annotations/person_keypoints_train.json data/people.json
    rcnn train benchmarks/people.yaml

Kept are the first images without crowds, with at most three people and ten labelled joints or more.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

IMAGES, MOST_PEOPLE, LEAST_JOINTS = 12, 3, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    content = json.loads(arguments.annotations.read_text())
    people = defaultdict(list)
    for annotation in content["annotations"]:
        people[annotation["image_id"]].append(annotation)
    chosen = [
        image
        for image in content["images"]
        if len(people[image["id"]]) <= MOST_PEOPLE
        and not any(one["iscrowd"] for one in people[image["id"]])
        and sum(one["num_keypoints"] for one in people[image["id"]]) >= LEAST_JOINTS
    ][:IMAGES]
    annotations = [annotation for image in chosen for annotation in people[image["id"]]]
    arguments.out.write_text(json.dumps({**content, "images": chosen, "annotations": annotations}))
    print(f"{arguments.out}: {len(chosen)} images, {len(annotations)} people")


if __name__ == "__main__":
    main()
