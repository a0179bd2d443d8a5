"""Masks and head boxes of filtered images.

The true weights (IS-Net for anime, an anime-head YOLO) cannot be had here. In their place stand ONNX models, made below
with the inputs and outputs of the true ones, that find what was drawn by its colour: what is tested is all around the
network, to the pixel.
"""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from handmade import BBOX, HEAD_BOX, draw
from retribooru.dataset_script.build import build_figures
from retribooru.dataset_script.build.annotate import annotate, find_image
from retribooru.dataset_script.build.annotations import Reject
from retribooru.dataset_script.build.detectors import heads_named, masks_named
from retribooru.dataset_script.build.onnx_models import best_head, decode_yolo, letterbox, unframed_boxes
from retribooru.dataset_script.build.stage import ANNOTATED, FILTERED, Runner, read_rejects, read_rows

HERE = Runner(1)
SIZES = [(1024, 1024), (300, 700), (640, 480), (100, 37), (512, 1024), (333, 1000), (2048, 1024)]


def write_filtered(folder, image_ids, parts=1):
    """FILTERED rows, in files as an earlier stage leaves them."""
    folder.mkdir()
    rows = [
        {"image_id": image_id, "character": "a", "artist": "b", "tags": ["solo"], "prompt": "solo"}
        for image_id in image_ids
    ]
    size = -(-len(rows) // parts)
    for number in range(parts):
        table = pa.Table.from_pylist(rows[number * size : (number + 1) * size], schema=FILTERED)
        pq.write_table(table, folder / f"part-{number:04d}.parquet")
    return folder


def drawn(size):
    """(picture, mask, head box): a green figure with a blue head, on grey; edges on even pixels."""
    width, height = size

    def even(share, side):
        return 2 * round(share * side / 2)

    body = [even(0.2, width), even(0.5, height), even(0.8, width), even(0.9, height)]
    head = [even(0.3, width), even(0.1, height), even(0.6, width), even(0.5, height)]
    image, mask = Image.new("RGB", size, (128, 128, 128)), Image.new("L", size)
    for box, color in ((body, (128, 255, 128)), (head, (128, 128, 255))):
        inside = (box[0], box[1], box[2] - 1, box[3] - 1)
        ImageDraw.Draw(image).rectangle(inside, fill=color)
        ImageDraw.Draw(mask).rectangle(inside, fill=255)
    return image, mask, head


def graph(file, nodes, output_shape, frame, batch=1):
    """Writes an ONNX model of nodes (operation, inputs, output, attributes); inputs that are arrays are constants."""
    onnx = pytest.importorskip("onnx", reason="makes the networks of the tests")
    pytest.importorskip("onnxruntime", reason="runs the networks of the tests")
    constants, made = [], []
    for operation, inputs, output, attributes in nodes:
        names = []
        for value in inputs:
            if not isinstance(value, str):
                name = f"constant_{len(constants)}"
                constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
                value = name
            names.append(value)
        made.append(onnx.helper.make_node(operation, names, [output], **attributes))
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor("images", onnx.TensorProto.FLOAT, [batch, 3, *frame])]
    outputs = [tensor("output", onnx.TensorProto.FLOAT, output_shape)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(made, "test", inputs, outputs, constants),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


def f32(value):
    return np.asarray(value, np.float32)


def colored(channel):
    """Nodes that make `found` (B, 1, H, W): 1 where one channel (or, for None, any) is far from the grey 128."""
    nodes = [
        ("Sub", ["images", f32(128 / 255)], "away", {}),
        ("Greater", ["away", f32(0.25)], "far", {}),  # half of 127 / 255
        ("Cast", ["far"], "far_number", {"to": 1}),
    ]
    if channel is None:
        return [*nodes, ("ReduceMax", ["far_number"], "found", {"axes": [1], "keepdims": 1})]
    return [*nodes, ("Gather", ["far_number", np.array([channel])], "found", {"axis": 1})]


def isnet(file, side=1024, batch=1):
    """IS-Net's signature, (1, 3, 1024, 1024) -> (1, 1, 1024, 1024): 1 where the picture is not grey.

    It says 1 in black as well, so in what the letterbox adds: none of that may come back.
    """
    nodes = [
        ("ReduceMax", ["images"], "brightest", {"axes": [1], "keepdims": 1}),
        ("Less", ["brightest", f32(0.25)], "is_black", {}),
        ("Cast", ["is_black"], "black", {"to": 1}),
        *colored(None),
        ("Max", ["found", "black"], "output", {}),
    ]
    return graph(file, nodes, [batch, 1, side, side], (side, side), batch)


def yolo(file, layout, decoys=(), frame=(640, 640), batch=1, classes=1):
    """A YOLO that sees one head, where it is blue; and 30 boxes more, score 0, or `decoys`: (cx, cy, w, h, score).

    layout: "v5" puts out (1, N, 5 + C), score = objectness x class; "v8" (1, 4 + C, N).
    """
    height, width = frame
    nodes = colored(2)
    for axis, name, side in ((2, "x", width), (3, "y", height)):
        numbers = (
            f32(np.arange(side)).reshape(1, 1, 1, side) if name == "x" else f32(np.arange(side)).reshape(1, 1, side, 1)
        )
        nodes += [
            ("ReduceMax", ["found"], f"on_{name}", {"axes": [axis], "keepdims": 1}),
            ("Mul", [f"on_{name}", numbers + 1], f"{name}_ends", {}),
            ("ReduceMax", [f"{name}_ends"], f"{name}_max", {"axes": [1, 2, 3], "keepdims": 1}),
            ("Mul", [f"on_{name}", side - numbers], f"{name}_starts", {}),
            ("ReduceMax", [f"{name}_starts"], f"{name}_from_end", {"axes": [1, 2, 3], "keepdims": 1}),
            ("Sub", [f32(side), f"{name}_from_end"], f"{name}_min", {}),
            ("Add", [f"{name}_min", f"{name}_max"], f"{name}_sum", {}),
            ("Mul", [f"{name}_sum", f32(0.5)], f"c{name}", {}),
            ("Sub", [f"{name}_max", f"{name}_min"], f"d{name}", {}),
        ]
    nodes += [("ReduceMax", ["found"], "any", {"axes": [1, 2, 3], "keepdims": 1})]
    nodes += [("Mul", ["any", f32(0.9)], "sure", {}), ("Mul", ["any", f32(0.8)], "class", {})]
    scores = ["sure", "class"] if layout == "v5" else ["class"]
    others = [f32(np.zeros((1, 1, 1, 1)))] * (classes - 1)
    nodes += [("Concat", ["cx", "cy", "dx", "dy", *scores, *others], "head", {"axis": 3})]
    rest = np.zeros((1, 1, 30, 4 + len(scores) + classes - 1), np.float32)
    for number, decoy in enumerate(decoys):
        rest[0, 0, number, :5] = decoy
        rest[0, 0, number, 4 + len(scores) - 1] = decoy[4] if layout == "v8" else 1
    nodes += [
        ("Shape", ["any"], "any_shape", {}),
        ("Expand", [rest, "any_shape"], "rest", {}),
        ("Concat", ["rest", "head"], "rows", {"axis": 2}),
        ("Squeeze", ["rows", np.array([1])], "output" if layout == "v5" else "boxes", {}),
    ]
    columns, count = rest.shape[3], 31
    if layout == "v8":
        nodes += [("Transpose", ["boxes"], "output", {"perm": [0, 2, 1]})]
    return graph(file, nodes, [batch, count, columns] if layout == "v5" else [batch, columns, count], frame, batch)


def write_drawn(folder, sizes=SIZES):
    """images/ID.png; returns {image_id: (mask, head box)}."""
    folder.mkdir()
    truth = {}
    for number, size in enumerate(sizes):
        image, mask, head = drawn(size)
        image.save(folder / f"{100 + number}.png")
        truth[f"{100 + number}"] = np.asarray(mask), head
    return truth


def mask_of(row):
    return np.asarray(Image.open(io.BytesIO(row["mask"])).convert("L"))


@pytest.fixture
def figures(tmp_path):
    """Five images and masks made by hand, filtered rows of them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(5):
        image, mask = draw("red")
        image.save(tmp_path / "images" / f"{number + 1}.png")
        mask.save(tmp_path / "masks" / f"{number + 1}.png")
    write_filtered(tmp_path / "filtered", [str(number + 1) for number in range(5)])
    return tmp_path


def run(folder, masks=None, heads="none", runner=HERE, out="out", **options):
    """(counts, {image_id: row}, {image_id: reason})"""
    masks = masks if masks is not None else f"given:{folder / 'masks'}"
    masks = masks_named(masks) if isinstance(masks, str) else masks
    heads = heads_named(heads) if isinstance(heads, str) else heads
    counts = annotate(folder / "filtered", folder / "images", folder / out, masks, heads, runner, **options)
    rows = {row["image_id"]: row for row in read_rows(folder / out).to_pylist()}
    return counts, rows, {line["image_id"]: line["reason"] for line in read_rejects(folder / out)}


@pytest.mark.parametrize("batch", [1, "any"])
def test_isnet_finds_the_figure_to_the_pixel(tmp_path, batch):
    truth = write_drawn(tmp_path / "images")
    write_filtered(tmp_path / "filtered", truth)
    counts, rows, _ = run(tmp_path, f"isnet:{isnet(tmp_path / 'isnet.onnx', batch=batch)}", batch_size=3)
    assert counts == {"kept": len(SIZES)}
    for image_id, (mask, _) in truth.items():
        assert np.array_equal(mask_of(rows[image_id]), mask), image_id
        assert rows[image_id]["head_box"] is None


@pytest.mark.parametrize("layout", ["v5", "v8"])
@pytest.mark.parametrize("frame", [(640, 640), (480, 640)])
def test_yolo_finds_the_head_to_the_pixel(tmp_path, layout, frame):
    sizes = [(640, 480), (100, 37), (300, 600), (333, 444), (64, 320)]
    truth = write_drawn(tmp_path / "images", sizes)
    write_filtered(tmp_path / "filtered", truth)
    decoys = [
        (30, 30, 60, 60, 0.99),
        (frame[1] / 2, frame[0] / 2, 90, 90, 0.2),
        (-500, 5, 20, 20, 0.9),
        (9, 9, 0, 0, 1),
    ]
    model = yolo(tmp_path / "yolo.onnx", layout, decoys, frame)
    masks = f"isnet:{isnet(tmp_path / 'isnet.onnx')}"
    counts, rows, _ = run(tmp_path, masks, f"yolo:{model}")
    assert counts == {"kept": len(sizes)}
    for image_id, (_, head) in truth.items():
        assert rows[image_id]["head_box"] == head, image_id


def test_batches_of_networks_that_take_any(tmp_path):
    truth = write_drawn(tmp_path / "images", [(64, 64), (300, 200), (90, 300)])
    write_filtered(tmp_path / "filtered", truth)
    masks = f"isnet:{isnet(tmp_path / 'isnet.onnx', 256, 'any')}"
    heads = f"yolo:{yolo(tmp_path / 'yolo.onnx', 'v5', batch='any')}"
    _, rows, _ = run(tmp_path, masks, heads, batch_size=2)
    assert [rows[image_id]["head_box"] for image_id in truth] == [head for _, head in truth.values()]


def test_what_no_network_finds(tmp_path):
    truth = write_drawn(tmp_path / "images", [(64, 64)])
    Image.new("RGB", (50, 80), (128, 128, 128)).save(tmp_path / "images" / "7.png")  # nothing
    image = Image.new("RGB", (50, 80), (128, 128, 128))
    ImageDraw.Draw(image).rectangle((10, 10, 30, 70), fill=(128, 255, 128))  # no head
    image.save(tmp_path / "images" / "8.png")
    write_filtered(tmp_path / "filtered", ["7", *truth, "8"])
    masks, heads = f"isnet:{isnet(tmp_path / 'i.onnx')}", f"yolo:{yolo(tmp_path / 'y.onnx', 'v8')}"
    counts, rows, reasons = run(tmp_path, masks, heads)
    assert counts == {"kept": 2, "mask": 1}
    assert reasons == {"7": "mask: got one without a figure, wanted some pixels above 0"}
    assert rows["8"]["head_box"] is None and rows["100"]["head_box"] == truth["100"][1]


def test_the_class_of_heads(tmp_path):
    truth = write_drawn(tmp_path / "images", [(64, 64)])
    write_filtered(tmp_path / "filtered", truth)
    masks = f"isnet:{isnet(tmp_path / 'i.onnx', 64)}"
    file = f"yolo:{yolo(tmp_path / 'y.onnx', 'v8', classes=2)}"
    assert run(tmp_path, masks, heads_named(file, head_class=0))[1]["100"]["head_box"] == truth["100"][1]
    assert run(tmp_path, masks, heads_named(file, head_class=1))[1]["100"]["head_box"] is None
    assert run(tmp_path, masks, heads_named(file, confidence=0.81))[1]["100"]["head_box"] is None
    with pytest.raises(ValueError, match="heads: the model has 2 classes, wanted one of index 2"):
        run(tmp_path, masks, heads_named(file, head_class=2))


def test_geometry_of_letterboxes():
    assert letterbox((320, 720), (640, 640)) == (178, 0, 462, 640)  # 284.4 x 640
    assert letterbox((1000, 10), (64, 64)) == (0, 31, 64, 32)  # one pixel at least
    assert letterbox((100, 50), (640, 480)) == (0, 80, 640, 400)
    boxes = np.array([[0, 80, 640, 400], [64, 144, 128, 208], [-99, 0, 999, 480], [3.1, 84, 9.7, 100]])
    found = unframed_boxes(boxes, (100, 50), (640, 480))
    assert found.tolist() == [[0, 0, 100, 50], [10, 10, 20, 20], [0, 0, 100, 50], [0, 1, 2, 3]]


def test_decoding_of_both_layouts():
    rows = np.array([[10, 20, 4, 8, 0.5, 0.8]] + [[1, 1, 1, 1, 0, 0]] * 9, np.float32)
    boxes, scores = decode_yolo(rows, 0)
    assert boxes[0].tolist() == [8, 16, 12, 24] and scores[0] == pytest.approx(0.4)
    boxes, scores = decode_yolo(rows[:, :5].T, 0)
    assert boxes[0].tolist() == [8, 16, 12, 24] and scores[0] == pytest.approx(0.5)


def test_the_head_is_the_surest_box_on_the_figure():
    mask = np.zeros((100, 100), bool)
    mask[20:80, 20:80] = True
    boxes = np.array([[0, 0, 20, 20], [30, 30, 40, 40], [50, 50, 60, 60], [10, 10, 30, 30], [30, 30, 30, 40]])
    assert best_head(boxes, np.array([0.9, 0.5, 0.7, 0.8, 0.99]), mask, 0.3) == [50, 50, 60, 60]
    assert best_head(boxes, np.array([0.9, 0.2, 0.2, 0.8, 0.99]), mask, 0.3) is None
    assert best_head(boxes, np.array([np.nan, np.nan, 0.4, np.nan, 0.9]), mask, 0.3) == [50, 50, 60, 60]
    assert best_head(np.zeros((0, 4), int), np.zeros(0), mask, 0.3) is None


def test_rembg_brings_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # nothing of rembg's that is compiled at its first import is used
    pytest.importorskip("rembg", reason="the annotate extra")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    isnet(tmp_path / "models" / "isnet-anime.onnx")
    truth = write_drawn(tmp_path / "images", [(64, 64)])
    write_filtered(tmp_path / "filtered", truth)
    _, rows, _ = run(tmp_path, "isnet")
    assert np.array_equal(mask_of(rows["100"]), truth["100"][0])


def test_alpha_is_the_mask(tmp_path):
    (tmp_path / "images").mkdir()
    image, mask = draw("red")
    image.putalpha(mask)
    image.save(tmp_path / "images" / "1.png")
    image.save(tmp_path / "images" / "2.webp", lossless=True, exact=True)
    image.rotate(90, expand=True).save(tmp_path / "images" / "3.png", exif=_turned())
    image.quantize().save(tmp_path / "images" / "4.png")
    image.convert("RGB").save(tmp_path / "images" / "5.png")
    image.putalpha(255)
    image.save(tmp_path / "images" / "6.png")
    image.putalpha(60)
    image.save(tmp_path / "images" / "7.png")
    write_filtered(tmp_path / "filtered", list("1234567"))
    counts, rows, reasons = run(tmp_path, "alpha")
    for image_id in "1234":
        assert np.array_equal(mask_of(rows[image_id]), np.asarray(mask)), image_id
    assert counts == {"kept": 4, "mask": 3}
    assert "5.png has no alpha channel" in reasons["5"] and "6.png is opaque everywhere" in reasons["6"]
    assert "got values up to 60" in reasons["7"]


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees, clockwise
    return exif


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_given_heads_in_each_format(figures, suffix):
    given = [("1", BBOX), ("2", None), ("3", [0.5, 0.5, 2, 0.1]), ("5", BBOX)]
    file = figures / f"heads.{suffix}"
    if suffix == "json":
        file.write_text(json.dumps([{"id": image_id, "bbox": bbox} for image_id, bbox in given]))
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps({"image_id": int(i), "bbox": bbox}) + "\n" for i, bbox in given))
    elif suffix == "csv":
        file.write_text("image_id,bbox\n" + "".join(f'{i},"{json.dumps(b) if b else ""}"\n' for i, b in given))
    else:
        pq.write_table(pa.table({"image_id": [i for i, _ in given], "bbox": [b for _, b in given]}), file)
    counts, rows, reasons = run(figures, heads=f"given:{file}")
    assert {image_id: row["head_box"] for image_id, row in rows.items()} == {
        "1": HEAD_BOX, "2": None, "4": None, "5": HEAD_BOX,
    }  # fmt: skip
    assert counts == {"kept": 4, "bbox": 1} and reasons["3"].startswith("bbox: got [0.5, 0.5, 2")


def test_given_heads_in_four_columns(figures):
    (figures / "heads.csv").write_text("image_id,cx,cy,w,h\n1," + ",".join(map(str, BBOX)) + "\n2,a,b,c,d\n")
    _, rows, reasons = run(figures, heads=f"given:{figures / 'heads.csv'}")
    assert rows["1"]["head_box"] == HEAD_BOX and rows["3"]["head_box"] is None
    assert reasons["2"].startswith("bbox: got ['a', 'b', 'c', 'd'], wanted four numbers")


def test_rejected_images_sink_no_batch(figures):
    images, masks = figures / "images", figures / "masks"
    (images / "1.png").unlink()
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:60])
    Image.new("L", (9, 9), 255).save(masks / "3.png")
    Image.new("L", (40, 60), 0).save(masks / "4.png")
    counts, rows, reasons = run(figures)
    assert list(rows) == ["5"] and counts == {"kept": 1, "image": 2, "mask": 2}
    assert reasons["1"].startswith("image: 1 is missing in ")
    assert reasons["2"].startswith("image: 2.png cannot be read: ")
    assert reasons["3"] == "mask: got size (9, 9), wanted the image's (40, 60)"
    assert reasons["4"] == "mask: got one without a figure, wanted some pixels above 0"
    records = {line["image_id"]: line["record"] for line in read_rejects(figures / "out")}
    assert records["1"] == {"image_id": "1", "character": "a", "artist": "b"}


def test_images_alone_are_not_worth_it(figures):
    for image_id in "13":  # not even looked for
        (figures / "images" / f"{image_id}.png").unlink()
    counts, rows, reasons = run(figures, only=pa.array(["2", "4", "99"]))
    assert list(rows) == ["2", "4"] and counts == {"kept": 2, "alone": 3}
    assert reasons["1"] == reasons["5"] == "alone: no other image of this character by this artist"
    assert run(figures, only=["5", "2"])[1].keys() == {"2", "5"}  # another choice, done anew
    assert run(figures, only=[])[0] == {"kept": 0, "alone": 5}


def test_layouts_of_danbooru(tmp_path):
    for name in ("12.png", "0012/1012.jpg", "0345/2345.webp", "0007/7.jpeg", "0999/5.png", "plain-name.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw("red")[0].save(tmp_path / name)
    for image_id, file in {
        "12": "12.png", "1012": "0012/1012.jpg", "2345": "0345/2345.webp", "7": "0007/7.jpeg",
        "plain-name": "plain-name.png",
    }.items():  # fmt: skip
        assert find_image(tmp_path, image_id) == tmp_path / file
    for image_id, reason in {
        "5": "image: 5 is missing in", "../x": "image_id: got '../x'", "0012/1012": "image_id: ", "": "image_id: ",
        "a" * 300: "image_id: ", "..": "image_id: ", "٣": "image_id: ",
    }.items():  # fmt: skip
        with pytest.raises(Reject, match=reason.replace(".", r"\.")):
            find_image(tmp_path, image_id)
    (tmp_path / "0031").mkdir()
    (tmp_path / "0031" / "31.png").mkdir()
    with pytest.raises(Reject, match="image: 31.png is not a regular file"):
        find_image(tmp_path, "31")


def test_the_file_is_named_below_the_folder(figures):
    (figures / "images" / "0003").mkdir()
    (figures / "images" / "3.png").rename(figures / "images" / "0003" / "3.png")
    _, rows, _ = run(figures)
    assert [rows[image_id]["file"] for image_id in ("2", "3")] == ["2.png", "0003/3.png"]
    assert read_rows(figures / "out").schema.equals(ANNOTATED)


def test_the_same_for_every_batch_size_and_process_count(tmp_path, monkeypatch):
    monkeypatch.setattr("retribooru.dataset_script.build.annotate.ROWS_PER_PART", 3)
    truth = write_drawn(tmp_path / "images", [(64, 64), (30, 90), (200, 100), (77, 77)] * 2)
    (tmp_path / "images" / "102.png").write_bytes(b"no picture")
    write_filtered(tmp_path / "filtered", truth, parts=2)
    masks, heads = (
        f"isnet:{isnet(tmp_path / 'i.onnx', 128)}",
        f"yolo:{yolo(tmp_path / 'y.onnx', 'v5', frame=(320, 320))}",
    )
    files = []
    for out, runner, batch_size in (("a", HERE, 1), ("b", HERE, 8), ("c", Runner(2), 2)):
        run(tmp_path, masks, heads, runner, out, batch_size=batch_size)
        files.append({file.name: file.read_bytes() for file in (tmp_path / out).glob("*.parquet")})
    assert files[0] == files[1] == files[2]
    assert sorted(files[0])[::2] == [f"part-{part:04d}-{start:07d}.parquet" for part in (0, 1) for start in (0, 3)]


def test_real_figures_as_the_build_has_them(real_figures, tmp_path):
    ids = [record["id"] for record in json.loads((real_figures / "retribooru.json").read_text())]
    write_filtered(tmp_path / "filtered", ids, parts=3)
    (tmp_path / "images").symlink_to(real_figures / "images")
    (tmp_path / "masks").symlink_to(real_figures / "masks")
    counts, rows, _ = run(tmp_path, heads=f"given:{real_figures / 'retribooru.json'}")
    build_figures(real_figures / "retribooru.json", real_figures / "images", real_figures / "masks", tmp_path / "built")
    built = [row for file in (tmp_path / "built" / "data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert counts == {"kept": len(ids)} and len(built) == len(ids) == 608
    for row in built:
        assert rows[row["image_id"]]["head_box"] == row["head_box"]
        meant = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])).convert("L"))
        assert np.array_equal(mask_of(rows[row["image_id"]]), meant)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("masks", "isnet:/nowhere.onnx", "masks: got /nowhere.onnx, which is not there"),
        ("masks", "given:/nowhere", "masks: got /nowhere, which is not there"),
        ("masks", "given", "masks: got 'given', wanted isnet"),
        ("masks", "alpha:x", "masks: got 'alpha:x', wanted isnet"),
        ("heads", "yolo", "heads: got 'yolo', wanted yolo:FILE"),
        ("heads", "yolo:/nowhere.onnx", "heads: got /nowhere.onnx, which is not there"),
        ("heads", "given:/nowhere.csv", "heads: got /nowhere.csv, which is not a file"),
        ("heads", "sam", "heads: got 'sam', wanted yolo:FILE"),
    ],
)
def test_names_that_mean_nothing(name, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        (masks_named if name == "masks" else heads_named)(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("heads.txt", "", "wanted .json, .jsonl, .csv, .parquet"),
        ("heads.json", "{}", "it holds a dict, wanted a list"),
        ("heads.json", "[1]", "record 1 holds a int, wanted an object"),
        ("heads.json", '[{"id": "1"}]', "record 1 has no bbox"),
        ("heads.jsonl", '{"id": "1", "bbox": null}\n{"id"', "line 2 is not JSON"),
        ("heads.jsonl", '{"id": "1", "bbox": null}\n{"id": 1, "bbox": null}', "has 1 twice"),
        ("heads.jsonl", '{"id": null, "bbox": null}', "line 1 has no id"),
        ("heads.csv", "image_id,box\n1,2\n", "row 1 has no bbox"),
        ("heads.parquet", "no Parquet", "cannot be used"),
    ],
)
def test_files_of_heads_that_mean_nothing(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"^heads: .*{name}.*{message}"):
        heads_named(f"given:{tmp_path / name}")


def test_files_that_are_no_network(figures):
    (figures / "x.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="masks: .*x.onnx is no ONNX model that can be loaded"):
        run(figures, f"isnet:{figures / 'x.onnx'}")
    graph(figures / "y.onnx", [("Relu", ["images"], "output", {})], [2, 3, 8, 8], (8, 8), 2)
    with pytest.raises(ValueError, match="heads: .*y.onnx takes batches of 2, wanted 1 or any"):
        run(figures, heads=f"yolo:{figures / 'y.onnx'}")
    graph(figures / "z.onnx", [("Relu", ["images"], "output", {})], [1, 3, 64, 64], (64, 64))
    with pytest.raises(ValueError, match=r"masks: the model puts out \(1, 3, 64, 64\)"):
        run(figures, f"isnet:{figures / 'z.onnx'}")
    with pytest.raises(ValueError, match="heads: the model puts out 4 dimensions"):
        run(figures, heads=f"yolo:{figures / 'z.onnx'}")


def test_arguments_that_cannot_be(figures):
    with pytest.raises(FileNotFoundError, match="images: got .*nowhere"):
        annotate(
            figures / "filtered", figures / "nowhere", figures / "out", masks_named("alpha"), heads_named("none"), HERE
        )
    with pytest.raises(ValueError, match="batch_size: got 0"):
        run(figures, batch_size=0)
    with pytest.raises(ValueError, match="threshold: got 1.5"):
        masks_named("isnet", threshold=1.5)
    with pytest.raises(ValueError, match="confidence: got 0"):
        heads_named("none", confidence=0)


@pytest.mark.parametrize("missing", ["onnxruntime", "rembg"])
def test_what_the_extra_brings_is_asked_for(figures, monkeypatch, missing):
    isnet(figures / "i.onnx", 64)
    for module in (missing, f"{missing}.sessions"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"wanted `pip install retribooru\[annotate\]`"):
        run(figures, "isnet" if missing == "rembg" else f"isnet:{figures / 'i.onnx'}")
