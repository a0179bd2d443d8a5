"""What a model says that a figure wears: through transformers, at an endpoint, from a file; and the judging of pairs.

The models are tiny ones with random weights, of transformers' own classes: their answers are nonsense, but depend on
image, mask and question. The endpoint is a server on this machine.
"""

import base64
import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from handmade import draw
from retribooru.dataset_script.build.annotations import Reject
from retribooru.dataset_script.build.ask import QUESTION, ask
from retribooru.dataset_script.build.endpoint import Endpoint
from retribooru.dataset_script.build.judge import judge, judge_outfits, parse_verdict, split_groups
from retribooru.dataset_script.build.stage import ANNOTATED, Runner, read_rejects, read_rows
from retribooru.dataset_script.build.vqa import TransformersModel, model_named
from retribooru.dataset_script.files import encode_image

HERE = Runner(1)
WORDS = "list top two colors of the character s cloths same why red blue green white black and wears a , . '".split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
COLORS = {"1": "red", "2": "green", "3": "blue", "4": "red", "5": "orange"}


def write_annotated(folder, colors, parts=1):
    """images/ID.png and the rows of an earlier stage."""
    (folder / "images").mkdir()
    (folder / "annotated").mkdir()
    rows = []
    for image_id, color in colors.items():
        image, mask = draw(color)
        image.save(folder / "images" / f"{image_id}.png")
        rows.append({"image_id": image_id, "file": f"{image_id}.png", "mask": encode_image(mask), "head_box": None})
    size = -(-len(rows) // parts)
    for number in range(parts):
        table = pa.Table.from_pylist(rows[number * size : (number + 1) * size], schema=ANNOTATED)
        pq.write_table(table, folder / "annotated" / f"part-{number:04d}.parquet")
    return folder


@pytest.fixture
def figures(tmp_path):
    return write_annotated(tmp_path, COLORS, parts=2)


def run(folder, model, out="answered", runner=HERE, **options):
    """(counts, {image_id: answer}, {image_id: reason})"""
    counts = ask(folder / "annotated", folder / "images", folder / out, model, runner, **options)
    rows = read_rows(folder / out).to_pylist()
    answers = {row["image_id"]: row["answer"] for row in rows}
    return counts, answers, {line["image_id"]: line["reason"] for line in read_rejects(folder / out)}


# Models through transformers.


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


def tiny_tokenizer(**options):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def randomize(model, seed=3):
    """Weights so large that the answers depend on everything."""
    import torch

    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EYES = {**SMALL, "image_size": 32, "patch_size": 16}


def save_instructblip(folder, language):
    from transformers import (
        BertTokenizer,
        BlipImageProcessorPil,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    qformer_tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    size = len(SPECIAL + WORDS)
    text = {"model_type": "llama", "vocab_size": size, **SMALL, **IDS}
    if language == "t5":
        text = {"model_type": "t5", "vocab_size": size, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2,
                "num_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}  # fmt: skip
    config = InstructBlipConfig(
        vision_config=EYES,
        qformer_config={**SMALL, "vocab_size": len(words), "encoder_hidden_size": 16},
        text_config=text,
        num_query_tokens=4,
        image_token_index=SPECIAL.index("<image>"),
    )
    randomize(InstructBlipForConditionalGeneration(config)).save_pretrained(folder)
    eyes = BlipImageProcessorPil(size={"height": 32, "width": 32})
    InstructBlipProcessor(eyes, tiny_tokenizer(), qformer_tokenizer, num_query_tokens=4).save_pretrained(folder)


def save_llava(folder):
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **EYES, "projection_dim": 16},
        text_config={"model_type": "llama", "vocab_size": len(SPECIAL + WORDS), **SMALL, **IDS},
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
    )
    randomize(LlavaForConditionalGeneration(config), seed=5).save_pretrained(folder)
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %} wears"
    )
    eyes = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    tokenizer = tiny_tokenizer(extra_special_tokens={"image_token": "<image>"})
    processor = LlavaProcessor(
        eyes, tokenizer, patch_size=16, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=["instructblip", "instructblip_t5", "llava"])
def model_folder(request, tmp_path_factory):
    return tiny_model(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def instructblip(tmp_path_factory):
    return tiny_model("instructblip", tmp_path_factory)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_model("llava", tmp_path_factory)


def tiny_model(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / name
    save_llava(folder) if name == "llava" else save_instructblip(folder, "t5" if "t5" in name else "llama")
    return folder


def answers_of_the_model_itself(folder, images, question, new_tokens):
    """Asked one by one, with the prompt written out by hand."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    text = f"<image> {question} wears" if folder.name == "llava" else question
    answers = []
    for image in images:
        inputs = processor(images=image, text=text, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0]
        if folder.name != "instructblip_t5":
            tokens = tokens[-new_tokens:] if 2 not in tokens.tolist() else tokens[inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(tokens, skip_special_tokens=True).strip())
    return answers


def on_white(color):
    image, mask = draw(color)
    return Image.composite(image, Image.new("RGB", image.size, "white"), mask)


def test_the_model_sees_the_figure_and_the_question(model_folder, figures):
    model = TransformersModel(str(model_folder), batch_size=2, max_new_tokens=6)
    counts, answers, _ = run(figures, model)
    assert counts == {"kept": 5}
    wanted = answers_of_the_model_itself(model_folder, map(on_white, COLORS.values()), QUESTION, 6)
    assert list(answers.values()) == wanted
    assert answers["1"] == answers["4"] and len(set(wanted)) > 1  # the same picture, the same answer; others, others
    assert all(answers.values())
    _, other_question, _ = run(figures, model, "other_question", question="top cloths of the character and why")
    _, with_background, _ = run(figures, model, "with_background", on_mask=False)
    assert other_question != answers and with_background != answers
    images = [draw(color)[0] for color in COLORS.values()]
    assert list(with_background.values()) == answers_of_the_model_itself(model_folder, images, QUESTION, 6)


def test_the_same_for_every_batch_size_and_process_count(instructblip, figures):
    files = []
    for out, processes, batch_size in (("a", 1, 1), ("b", 1, 8), ("c", 2, 3)):
        run(figures, TransformersModel(str(instructblip), batch_size, 6), out, Runner(processes))
        files.append({file.name: file.read_bytes() for file in (figures / out).glob("*.parquet")})
    assert files[0] == files[1] == files[2] and len(files[0]) == 4


def test_images_that_cannot_be_shown(instructblip, figures):
    (figures / "images" / "1.png").unlink()
    draw("red", size=(50, 60))[0].save(figures / "images" / "2.png")
    counts, answers, reasons = run(figures, TransformersModel(str(instructblip)))
    assert list(answers) == ["3", "4", "5"] and counts == {"kept": 3, "image": 2}
    assert reasons["1"].startswith("image: 1.png cannot be read: No such file")
    assert reasons["2"] == "image: 2.png has size (50, 60), its mask (40, 60): it was changed"


def test_a_file_outside_the_folder_is_not_shown(instructblip, figures):
    draw("red")[0].save(figures / "secret.png")
    file = figures / "annotated" / "part-0000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["file"] = "../secret.png"
    pq.write_table(pa.Table.from_pylist(rows, schema=ANNOTATED), file)
    _, _, reasons = run(figures, TransformersModel(str(instructblip)))
    assert reasons == {"1": "image: '../secret.png' is no relative path of plain names"}


def test_names_that_are_no_model(figures, tmp_path):
    with pytest.raises(ValueError, match="model: .*nothing_here cannot be loaded"):
        run(figures, model_named(str(tmp_path / "nothing_here")))
    tiny_tokenizer().save_pretrained(tmp_path / "text_only")
    with pytest.raises(ValueError, match="model: .*text_only"):
        run(figures, model_named(str(tmp_path / "text_only")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ""}, "model: got nothing, wanted given:FILE"),
        ({"text": "x", "batch_size": 0}, "batch_size: got 0"),
        ({"text": "x", "max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"text": "x", "endpoint_model": "y"}, "endpoint_model: got y, wanted a name for an endpoint, and for that"),
        ({"text": "http://localhost/v1"}, "endpoint_model: got None"),
        ({"text": "http://me:secret@host/v1", "endpoint_model": "y"}, "model: got a URL with a password"),
        (
            {"text": "http://host/v1", "endpoint_model": "y", "trust_remote_code": True},
            "trust_remote_code: got it with",
        ),
        ({"text": "given:x.txt"}, "model: got x.txt, which is not a file"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        model_named(**options)
    assert "secret" not in str(caught.value)


def test_what_the_extra_brings_is_asked_for(figures, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"transformers: got none, wanted `pip install retribooru\[annotate\]`"):
        run(figures, model_named("some/model"))


# Given answers.

GIVEN = [("1", "Red, Black."), ("2", "light blue"), ("4", ""), ("9", "pink")]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_given_answers_in_each_format(figures, suffix):
    file = figures / f"answers.{suffix}"
    if suffix == "json":
        file.write_text(json.dumps([{"image_id": image_id, "answer": answer} for image_id, answer in GIVEN]))
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps({"id": int(i), "answer": answer}) + "\n" for i, answer in GIVEN))
    elif suffix == "csv":
        file.write_text("image_id,answer\n" + "".join(f'{i},"{answer}"\n' for i, answer in GIVEN))
    else:
        pq.write_table(pa.table({"image_id": [int(i) for i, _ in GIVEN], "answer": [a for _, a in GIVEN]}), file)
    counts, answers, reasons = run(figures, model_named(f"given:{file}"), runner=Runner(2))
    assert answers == {"1": "Red, Black.", "2": "light blue", "4": ""}
    assert counts == {"kept": 3, "answer": 2}
    assert reasons == {"3": "answer: none given for 3", "5": "answer: none given for 5"}


def test_given_answers_need_no_images(figures):
    (figures / "answers.csv").write_text("image_id,answer\n" + "".join(f"{i},red\n" for i in COLORS))
    counts = ask(figures / "annotated", None, figures / "out", model_named(f"given:{figures / 'answers.csv'}"), HERE)
    assert counts == {"kept": 5}
    with pytest.raises(ValueError, match="images: got none"):
        ask(figures / "annotated", None, figures / "out", TransformersModel("x"), HERE)
    with pytest.raises(ValueError, match="question: got nothing"):
        run(figures, TransformersModel("x"), question=" ")


def test_given_answers_of_the_wrong_kind(figures):
    lines = [{"id": "1", "answer": None}, {"id": "2", "answer": ["red"]}, {"id": "3", "answer": "\ud800"}]
    (figures / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts, _, reasons = run(figures, model_named(f"given:{figures / 'answers.jsonl'}"))
    assert counts == {"kept": 0, "answer": 5}
    assert reasons["1"] == "answer: got None for 1, wanted text"
    assert reasons["2"] == "answer: got ['red'] for 2, wanted text"
    assert reasons["3"] == "answer: what is given for 3 is not UTF-8"


def test_other_given_answers_are_taken_anew(figures):
    file = figures / "answers.csv"
    for color in ("red", "green"):
        file.write_text("image_id,answer\n" + "".join(f"{i},{color}\n" for i in COLORS))
        assert set(run(figures, model_named(f"given:{file}"))[1].values()) == {color}


def test_the_clothes_of_the_authors_form(real_figures, tmp_path):
    records = json.loads((real_figures / "retribooru.json").read_text())
    (tmp_path / "annotated").mkdir()
    table = pa.table({"image_id": [record["id"] for record in records]})
    pq.write_table(table, tmp_path / "annotated" / "part-0.parquet")
    model = model_named(f"given:{real_figures / 'retribooru.json'}")
    assert ask(tmp_path / "annotated", None, tmp_path / "out", model, HERE) == {"kept": 608}
    assert read_rows(tmp_path / "out")["answer"].to_pylist() == [", ".join(record["cloths"]) for record in records]


# An endpoint.


class Stub:
    """A server that answers with the colour of the figure it is shown, but for what `faults` say.

    Args:
        faults: called with the number of the request, from 0 on, and the pixel in the middle of the figure; returns
            None, (status, headers, body), "hang" or "cut".
    """

    def __init__(self, faults=lambda number, pixel: None):
        self.faults, self.requests, self.keys, self.at_once, self.most = faults, [], [], 0, 0
        self.lock, self.over = threading.Lock(), threading.Event()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.keys.append(handler.headers.get("Authorization"))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        images = [
            Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))))
            for part in body["messages"][0]["content"]
            if part["type"] == "image_url"
        ]
        pixels = [image.getpixel((20, 40)) for image in images]
        fault = self.faults(number, pixels[0])
        with self.lock:
            self.at_once -= 1
        if fault == "hang":
            self.over.wait(20)
            return
        if fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"{")
            return
        text = str(pixels[0]) if len(pixels) == 1 else json.dumps({"same": pixels[0] == pixels[1], "why": "its colour"})
        status, headers, data = fault or (200, {}, json.dumps({"choices": [{"message": {"content": f" {text}\n"}}]}))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data.encode())


@contextlib.contextmanager
def serving(stub):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            stub.answer(self)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        stub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def impatient(url, **options):
    return Endpoint(url, "some-model", **{"first_wait": 0.01, "timeout": 0.5, "tries": 4, "concurrency": 2, **options})


SEEN = {"1": "(255, 0, 0)", "2": "(0, 128, 0)", "3": "(0, 0, 255)", "4": "(255, 0, 0)", "5": "(255, 165, 0)"}
RED, GREEN = (255, 0, 0), (0, 128, 0)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_an_endpoint_sees_the_figure_and_the_question(figures):
    stub = Stub()
    with serving(stub) as url:
        counts, answers, _ = run(figures, model_named(url + "/", 1, 20, endpoint_model="some-model"))
    assert answers == SEEN and counts == {"kept": 5}
    body = stub.requests[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("some-model", 20, 0)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert body["messages"][0]["content"][1]["text"] == QUESTION
    picture = base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"].split(",")[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), np.asarray(on_white("red")))
    assert stub.keys == [None] * 5


def test_requests_side_by_side(figures):
    barrier = threading.Barrier(2)  # broken where only one comes at a time

    def wait(number, pixel):
        if number < 2:
            barrier.wait(5)

    stub = Stub(wait)
    with serving(stub) as url:
        assert run(figures, impatient(url, timeout=10))[1] == SEEN
    assert stub.most == 2


def test_the_key_is_sent_and_told_nobody(figures, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    stub = Stub(lambda number, pixel: (401, {}, "wrong key: sk-very-secret") if number == 5 else None)
    with serving(stub) as url:
        run(figures, impatient(url))
        assert set(stub.keys) == {"Bearer sk-very-secret"}
        with pytest.raises(ConnectionError, match=r"refuses to answer, HTTP 401: wrong key: \*\*\*") as caught:
            run(figures, impatient(url, concurrency=1), "again")
    assert "sk-very" not in str(caught.value)
    written = [file.read_bytes() for file in (figures / "answered").iterdir()]
    assert not any(b"sk-very" in data for data in written)


def test_redirects_are_not_followed(figures, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    elsewhere = Stub()
    with serving(elsewhere) as other, serving(Stub(lambda *_: (302, {"Location": other}, ""))) as url:
        with pytest.raises(ConnectionError, match="refuses to answer, HTTP 302"):
            run(figures, impatient(url))
    assert not elsewhere.requests


FAULTS = {
    "429": (429, {"Retry-After": "0"}, "slow down"),
    "500": (500, {}, "oops"),
    "503": (503, {"Retry-After": "nonsense"}, ""),
    "hang": "hang",
    "cut": "cut",
    "no JSON": (200, {}, "<html>"),
    "no completion": (200, {}, '{"choices": []}'),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_that_pass(figures, fault):
    stub = Stub(lambda number, pixel: fault if number in (0, 1, 3) else None)
    with serving(stub) as url:
        counts, answers, _ = run(figures, impatient(url))
    assert answers == SEEN and counts == {"kept": 5} and len(stub.requests) == 8


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_server_that_dies_loses_nothing(figures, fault):
    """The first part is done before, and not asked about again; the second is whole afterwards."""
    stub = Stub(lambda number, pixel: fault if 3 <= number < 7 else None)
    with serving(stub) as url:
        model = impatient(url, concurrency=1)
        with pytest.raises(ConnectionError, match=f"model: {url} does not answer, after 4 tries: "):
            run(figures, model)
        assert read_rows(figures / "answered")["image_id"].to_pylist() == ["1", "2", "3"]
        assert len(stub.requests) == 7
        counts, answers, _ = run(figures, model)
    assert answers == SEEN and counts == {"kept": 5} and len(stub.requests) == 9


def test_nobody_there(figures):
    with serving(Stub()) as url:
        pass
    with pytest.raises(ConnectionError, match="does not answer, after 4 tries: .*refused"):
        run(figures, impatient(url))


@pytest.mark.parametrize(
    "fault",
    [
        (400, {}, '{"error": "content policy"}'),
        (413, {}, "too large"),
        (200, {}, json.dumps({"choices": [{"message": {"content": None, "refusal": "I will not"}}]})),
        (200, {}, json.dumps({"choices": [{"message": {"content": None}}]})),
    ],
)
def test_refused_images_are_rejected(figures, fault):
    with serving(Stub(lambda number, pixel: fault if pixel == GREEN else None)) as url:
        counts, answers, reasons = run(figures, impatient(url))
    assert counts == {"kept": 4, "answer": 1} and "2" not in answers
    assert reasons["2"].startswith("answer: refused, ")


def test_an_image_that_the_server_always_fails_on(figures):
    """While others are answered, the image is at fault; else the server is dead."""
    stub = Stub(lambda number, pixel: (500, {}, "CUDA error") if pixel == GREEN else None)
    with serving(stub) as url:
        counts, _, reasons = run(figures, impatient(url, first_wait=0.1))
    assert counts == {"kept": 4, "answer": 1}
    assert reasons == {"2": "answer: HTTP 500: CUDA error, 4 times"}


def test_a_server_that_refuses_everything(tmp_path):
    write_annotated(tmp_path, {str(number): "red" for number in range(30)})
    with serving(Stub(lambda number, pixel: (400, {}, "this model cannot see"))) as url:
        with pytest.raises(ConnectionError, match="refuses every image, .*: answer: refused, HTTP 400: this model"):
            run(tmp_path, impatient(url))


# Judging pairs.


def test_judging_is_linear_where_the_model_agrees():
    asked = []

    def same_letter(first, second):
        asked.append((first, second))
        return first[0] == second[0], "letter"

    split, rows = judge([["a1", "a2", "b1", "a3", "b2", "c1"], ["d1"], []], same_letter)
    assert split == [["a1", "a2", "a3"], ["b1", "b2"], ["c1"], ["d1"]]
    assert asked == [("a1", "a2"), ("a1", "b1"), ("a1", "a3"), ("a1", "b2"), ("b1", "b2"), ("a1", "c1"), ("b1", "c1")]
    assert rows[1] == {"image_id": "b1", "representative": "a1", "same": False, "explanation": "letter"}
    assert len(rows) == 7
    many = [f"a{number}" for number in range(1000)]
    assert len(judge([many], same_letter)[1]) == 999
    assert split_groups([["a1", "a2", "b1", "a3", "b2", "c1"], ["d1"], []], pa.Table.from_pylist(rows)) == split


@pytest.mark.parametrize(
    ("text", "same", "why"),
    [
        ('{"same": true, "why": "both red"}', True, "both red"),
        ('Sure!\n```json\n{"same": false, "why": "one {blue}"}\n```', False, "one {blue}"),
        ('{"other": 1} {"same": true}', True, ""),
        ("Yes, both wear a red coat.", True, "both wear a red coat."),
        ("**No** - the coat is blue.", False, "** - the coat is blue."),
        ("nothing can be said", False, "no verdict: nothing can be said"),
        ("Yesterday", False, "no verdict: Yesterday"),
        ('{"same": "perhaps"}', False, 'no verdict: {"same": "perhaps"}'),
        ("{" * 10000, False, "no verdict: " + "{" * 300),
        ("", False, "no verdict: "),
    ],
)
def test_verdicts(text, same, why):
    assert parse_verdict(text) == (same, why)


def test_judging_at_an_endpoint(figures):
    stub = Stub()
    groups = [["1", "2", "4"], ["3"], ["5", "1"]]
    with serving(stub) as url:
        split = judge_outfits(
            groups, figures / "annotated", figures / "images", figures / "judged", impatient(url), HERE
        )
        assert split == [["1", "4"], ["2"], ["3"], ["5"], ["1"]]
        assert len(stub.requests) == 3
        again = judge_outfits(
            groups, figures / "annotated", figures / "images", figures / "judged", impatient(url), HERE
        )
    assert again == split and len(stub.requests) == 3  # done already
    rows = {(row["image_id"], row["representative"]): row for row in read_rows(figures / "judged").to_pylist()}
    assert rows["2", "1"]["same"] is False and rows["4", "1"] == {
        "image_id": "4", "representative": "1", "same": True, "explanation": "its colour",
    }  # fmt: skip
    assert [part["type"] for part in stub.requests[0]["messages"][0]["content"]] == ["image_url", "image_url", "text"]


def test_judging_by_a_model_that_is_shown_two_images(llava, instructblip, figures):
    model = TransformersModel(str(llava), max_new_tokens=6).load()
    images = [on_white("red"), on_white("green")]
    answers = model([lambda: images, lambda: images[::-1], lambda: images], "same")
    assert answers[0] == answers[2] != answers[1] and all(answers)
    shows = [lambda: images[:1], lambda: images]  # prompts of two lengths, in one batch and one by one
    assert model(shows, QUESTION) == [model([show], QUESTION)[0] for show in shows]
    split = judge_outfits(
        [["1", "2"]], figures / "annotated", figures / "images", figures / "judged", TransformersModel(str(llava)), HERE
    )
    assert split == [["1"], ["2"]] and read_rows(figures / "judged")["explanation"][0].as_py().startswith("no verdict")
    with pytest.raises(ValueError, match="has no chat template, wanted one that can be shown two images"):
        TransformersModel(str(instructblip)).load()([lambda: images], "same")


def test_a_pair_that_cannot_be_shown_is_not_the_same(figures):
    (figures / "images" / "2.png").unlink()
    with serving(Stub()) as url:
        split = judge_outfits(
            [["1", "2", "4"]], figures / "annotated", figures / "images", figures / "judged", impatient(url), HERE
        )
    assert split == [["1", "4"], ["2"]]
    assert read_rows(figures / "judged")["explanation"][0].as_py().startswith("no verdict: image: 2.png cannot be read")


def test_given_answers_judge_nothing(figures):
    (figures / "answers.csv").write_text("image_id,answer\n1,red\n")
    with pytest.raises(ValueError, match="model: got given answers, wanted a model that is shown two images"):
        judge_outfits(
            [], figures / "annotated", figures / "images", figures / "judged",
            model_named(f"given:{figures / 'answers.csv'}"), HERE,
        )  # fmt: skip


def test_a_reject_is_an_answer(figures):
    def broken():
        raise Reject("image: broken")

    with serving(Stub()) as url:
        (first, second) = impatient(url).load()([broken, lambda: [on_white("red")]], "what")
    assert str(first) == "image: broken" and second == SEEN["1"]
