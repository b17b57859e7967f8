"""The viewer in Chromium without a window: what it draws, what keys do, what it reads out, that nothing leaves.

The browser is driven by its DevTools protocol over two pipes: messages of JSON, each ended by a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from ambient_sci import open_store
from ambient_sci.reconstruction.output import TITLE
from ambient_sci.viewer import view, write_viewer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")

OPTIONS = (
    "--headless=new --remote-debugging-pipe --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --disable-extensions --hide-scrollbars"
)
KEYS = {" ": "Space", "?": "Slash", "+": "Equal", "-": "Minus", "0": "Digit0", "a": "KeyA", "o": "KeyO", "p": "KeyP"}
SHIFT = 8


class Browser:
    """A page of a headless Chromium, and what it complained of or asked for since `open`."""

    def __init__(self, profile: Path) -> None:
        commands, self.to = os.pipe()
        self.answers, messages = os.pipe()
        # bash gives them the numbers that Chromium expects
        renumber = ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{messages}']
        self.process = subprocess.Popen(
            [*renumber, str(CHROMIUM), *OPTIONS.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, messages),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(messages)
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = next(one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.answers)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                read = os.read(self.answers, 1 << 20)
                assert read, "Chromium has ended"
                self.buffer += read
            text, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, path: Path, width: int = 1600, height: int = 1000, **media: str) -> None:
        """Load a file into a window of that size, and wait until it has drawn."""
        self.events.clear()
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self("Emulation.setEmulatedMedia", features=features)
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete'")
        self.settle()

    def run(self, code: str) -> Any:
        """Value of an expression, awaited where it is a promise."""
        answer = self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + 20
        while not self.run(condition):
            assert time.monotonic() < end, f"waited in vain until {condition}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until what was changed is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key and let it go."""
        about = {"key": key, "code": KEYS.get(key, key), "modifiers": modifiers}
        text = {"text": key} if len(key) == 1 else {}
        if key in ("Tab", "Enter", "Escape"):
            about["windowsVirtualKeyCode"] = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        self("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self("Input.dispatchKeyEvent", type="keyUp", **about)
        self.settle()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Move, press, release or turn the wheel of a mouse."""
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.settle()

    def text(self, element: str) -> str:
        """Text of an element."""
        return str(self.run(f"document.getElementById({element!r}).textContent"))

    def picture(self, element: str) -> str:
        """What is drawn on a canvas."""
        return str(self.run(f"document.getElementById({element!r}).toDataURL()"))

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what is to be seen as PNG."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, exceptions, and requests for anything but the page itself."""
        self.settle()
        found: list[Any] = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                found.append(params)
            if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
                found.append(params["request"]["url"])
        files = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return found + [url for url in files if url.startswith("file:")][1:]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def path(posterior: xarray.Dataset, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    return write_viewer(folder / "view.html", posterior, open_store(store_path), count=3)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def values(browser: Browser, name: str) -> list[float]:
    """Numbers of the readout."""
    return [number(part) for part in browser.text(f"value-{name}").replace(",", "").split() if part[-1].isdigit()]


def middle(browser: Browser, panel: str, x: float, y: float) -> tuple[float, float]:
    """Place in the window of a point of a panel, in units of the panel."""
    browser.run(f"document.getElementById({panel!r}).scrollIntoView({{block: 'center'}})")
    box = browser.run(
        "(({x, y, width, height}) => [x, y, width, height])"
        f"(document.getElementById({panel!r}).getBoundingClientRect())"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


def drag(browser: Browser, x: float, y: float, by: tuple[float, float], button: str) -> None:
    held = {"button": button, "buttons": {"left": 1, "right": 2}[button]}
    browser.mouse("mousePressed", x, y, clickCount=1, **held)
    browser.mouse("mouseMoved", x + by[0], y + by[1], **held)
    browser.mouse("mouseReleased", x + by[0], y + by[1], button=button)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_opens_at_any_width(browser: Browser, path: Path, width: int, scheme: str) -> None:
    browser.open(path, width, 900, prefers_color_scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.run("about.panels.forEach(panel => panel.shown = true), change({overlay: 0, part: 'phase'})")
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == width
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 27)"}[scheme]
    outside = browser.run(
        "[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1)"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_nothing_leaves(browser: Browser, path: Path) -> None:
    browser.open(path)
    assert browser.complaints() == []
    tried = browser.run(
        "Promise.all([fetch('https://example.org/').catch(() => 'refused'), new Promise(done => "
        "Object.assign(new Image(), {src: 'https://example.org/a.png', onerror: () => done('refused')}))])"
    )
    assert tried == ["refused", "refused"]
    said = [event["params"]["entry"]["text"] for event in browser.events if event.get("method") == "Log.entryAdded"]
    assert len([text for text in said if "Content Security Policy" in text]) >= 2


def test_pixels_are_the_values(browser: Browser, path: Path, posterior: xarray.Dataset) -> None:
    """Grey of each pixel of the mean, in the middle of where it is drawn, far from the cross."""
    browser.open(path)
    browser.run("move({cross: {x: 0, y: 0}})")
    drawn = np.array(
        browser.run(
            "(canvas => [...Array(256).keys()].map(k => [...canvas.getContext('2d').getImageData("
            "(k % 16 + 0.5) * canvas.width / 16, (Math.floor(k / 16) + 0.5) * canvas.height / 16, 1, 1).data]))"
            "(document.getElementById('panel-mean'))"
        )
    ).reshape(16, 16, 4)
    wanted = 255 * np.clip(np.abs(posterior["mean"][0, 0].to_numpy()) / browser.run("scan.windows.image[1]"), 0, 1)
    assert np.abs(drawn[4:, 4:, :3] - wanted[4:, 4:, None]).max() <= 1
    assert wanted.std() > 20


def test_slider_changes_the_sample_alone(browser: Browser, path: Path) -> None:
    browser.open(path)
    before = {name: browser.picture(f"panel-{name}") for name in ("sample", "mean", "std")}
    at = middle(browser, "sample", 0.5, 0.5)
    browser.mouse("mousePressed", *at, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseReleased", *at, button="left", clickCount=1)
    assert browser.text("sample-text") in ("3 of 6", "4 of 6")
    after = {name: browser.picture(f"panel-{name}") for name in before}
    assert {name: after[name] == before[name] for name in before} == {"sample": False, "mean": True, "std": True}
    browser.press("ArrowRight")  # which is the slider's own now
    assert browser.text("sample-text") in ("4 of 6", "5 of 6")


def test_keys(browser: Browser, path: Path) -> None:
    browser.open(path)
    seen = {browser.picture("panel-sample")}
    for _ in range(5):
        browser.press("ArrowRight")
        seen.add(browser.picture("panel-sample"))
    assert len(seen) == 6
    browser.press("ArrowRight")
    assert browser.text("sample-text") == "1 of 6"
    browser.press("ArrowLeft")
    assert browser.text("sample-text") == "6 of 6"
    first = browser.picture("panel-mean")
    browser.press("ArrowDown")
    assert browser.run("document.getElementById('scan').selectedOptions[0].textContent") == "Scan 4 · subject 1"
    assert browser.picture("panel-mean") != first
    browser.press("ArrowUp")
    assert browser.picture("panel-mean") == first
    browser.press("+")
    browser.press("+")
    assert browser.text("zoom") == "1.6×"
    assert browser.picture("panel-mean") != first
    browser.press("-")
    browser.press("0")
    assert browser.text("zoom") == "1.0×"
    assert browser.picture("panel-mean") == first
    for key, back in (("o", "overlay: -1"), ("p", "part: 'magnitude'"), ("]", "width: 1"), (".", "level: 0.5")):
        browser.press(key)
        assert browser.picture("panel-mean") != first
        browser.run(f"change({{{back}}})")
        browser.settle()
        assert browser.picture("panel-mean") == first
    browser.press("[")
    browser.press("a")
    assert browser.picture("panel-mean") == first
    x, y = browser.text("value-pixel").split(", ")
    browser.press("ArrowRight", SHIFT)
    browser.press("ArrowUp", SHIFT)
    assert browser.text("value-pixel") == f"x {int(x[2:]) + 1}, y {int(y[2:]) - 1}"
    browser.press("?", SHIFT)
    assert browser.run("document.getElementById('keys').open")
    before = browser.text("sample-text")
    browser.press("ArrowRight")
    assert browser.text("sample-text") == before
    browser.press("Escape")
    assert not browser.run("document.getElementById('keys').open")
    assert browser.complaints() == []


def test_plays(browser: Browser, path: Path) -> None:
    browser.open(path)
    browser.press(" ")
    browser.until("state.sample > 1")
    assert browser.run("document.getElementById('play').getAttribute('aria-pressed')") == "true"
    browser.press(" ")
    stopped = browser.text("sample-text")
    time.sleep(0.5)
    assert browser.text("sample-text") == stopped
    browser.open(path, prefers_reduced_motion="reduce")
    browser.run("globalThis.every = 0, globalThis.setInterval = (action, time) => (every = time)")
    browser.press(" ")
    assert browser.run("every") == 1000


def test_reads_what_is_under_the_pointer(
    browser: Browser, path: Path, posterior: xarray.Dataset, store_path: Path
) -> None:
    browser.open(path)
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    truth = open_store(store_path).references([4])[0, 0].numpy()
    pixel = posterior.isel(scan=4, channel=0, x=10, y=6)
    one: dict[str, Any] = {str(name): value.to_numpy().tolist() for name, value in pixel.items()}
    wanted = {
        "mean": [abs(one["mean"]), one["std"]],
        "interval": [one["lower"], one["upper"]],
        "quantiles": one["quantile"],
        "sample": [abs(one["sample"][1])],
        "truth": [abs(truth[6, 10])],
        "error": [abs(one["mean"] - truth[6, 10])],
        "z": [(abs(one["mean"]) - abs(truth[6, 10])) * np.sqrt(2) / one["std"]],
    }
    for panel in ("panel-std", "panel-sample"):
        at = middle(browser, panel, (10 + 0.5) / 16, (6 + 0.5) / 16)
        if panel == "panel-sample":  # what is under the pointer stays there
            browser.mouse("mouseWheel", *at, deltaX=0, deltaY=-300)
            browser.mouse("mouseWheel", *at, deltaX=0, deltaY=-300)
            assert number(browser.text("zoom")[:-1]) > 1.5
        browser.mouse("mouseMoved", *at)
        assert browser.text("value-pixel") == "x 10, y 6"
        for name, known in wanted.items():
            assert values(browser, name) == pytest.approx(known, rel=5e-3, abs=5e-5), name
    browser.press("p")
    assert browser.text("value-sample").endswith(" rad")
    assert number(browser.text("value-sample").split()[-2]) == pytest.approx(np.angle(one["sample"][1]), abs=5e-3)


def test_drags(browser: Browser, path: Path) -> None:
    browser.open(path)
    others = {name: browser.picture(f"panel-{name}") for name in ("sample", "truth", "std")}
    drag(browser, *middle(browser, "panel-mean", 0.5, 0.5), (-60, 0), "right")
    width = browser.run("state.width")
    assert width < 0.9
    assert number(browser.text("width-text")) == pytest.approx(width * browser.run("scan.windows.image[1]"), rel=5e-3)
    browser.run("move({cross: {x: 0.5, y: 0.5}})")
    same = {name: browser.picture(f"panel-{name}") == before for name, before in others.items()}
    assert same == {"sample": False, "truth": False, "std": True}
    drag(browser, *middle(browser, "panel-std", 0.5, 0.5), (-60, 0), "right")
    assert browser.run("state.spread") < 0.9
    assert browser.run("state.width") == width
    browser.press("+")
    browser.press("+")
    before = browser.run("[state.x, state.y]")
    drag(browser, *middle(browser, "panel-std", 0.5, 0.5), (20, -10), "left")
    after = browser.run("[state.x, state.y]")
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_two_fingers(browser: Browser, path: Path) -> None:
    browser.open(path, 400, 850)
    x, y = middle(browser, "panel-mean", 0.5, 0.5)
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 40)):
        fingers = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        browser("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
        browser.settle()
    browser("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.settle()
    assert browser.run("state.zoom") == pytest.approx(2, rel=0.1)
    assert browser.run("pointers.size") == 0


def test_every_control_can_be_reached_and_has_a_name(browser: Browser, path: Path) -> None:
    browser.open(path)
    controls = "[...document.querySelectorAll('main button, main input, main select, #panels, summary')]"
    wanted = browser.run(f"{controls}.filter(one => one.checkVisibility()).length")
    reached = set()
    for _ in range(wanted):
        browser.press("Tab")
        reached.add(browser.run(f"{controls}.indexOf(document.activeElement)"))
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert len(reached - {-1}) == wanted
    nodes = [node for node in browser("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    kinds = ("button", "slider", "combobox", "checkbox", "image", "img", "toolbar")
    found = [node for node in nodes if node["role"]["value"] in kinds]
    assert len(found) > 20
    assert not [node for node in found if not node["name"]["value"]]


def test_volumes(browser: Browser, tmp_path: Path) -> None:
    """Real images with channels and slices, wider than high, with values missing; no samples, no reference."""
    mean = np.random.default_rng(3).standard_normal((1, 2, 3, 5, 8)).astype(np.float32)
    mean[0, 1, 2, 4, 7] = np.nan
    dims = ("scan", "channel", "z", "y", "x")
    std = np.full(mean.shape, 1e-6, np.float32)
    dataset = xarray.Dataset({"mean": (dims, mean), "std": (dims, std)}, {"scan": [0]}, {"title": TITLE})
    dataset["mean"].attrs["units"] = "<b>Jy</b>/pixel"
    browser.open(write_viewer(tmp_path / "view.html", dataset))
    assert not browser.run("document.getElementById('play').checkVisibility()")
    assert not browser.run("document.getElementById('part').checkVisibility()")
    first = browser.picture("panel-mean")
    browser.press("PageDown")
    assert browser.text("slice-text") == "2 of 3"
    assert browser.picture("panel-mean") != first
    browser.press("PageDown")
    browser.run("change({channel: 1}), move({cross: {x: 0.99, y: 0.99}})")
    browser.settle()
    assert browser.text("value-pixel") == "x 7, y 4, z 2"
    assert browser.text("value-mean").startswith("none ± ")
    browser.press("ArrowLeft", SHIFT)
    found = browser.text("value-mean").split(" ± ")
    assert number(found[0]) == pytest.approx(mean[0, 1, 2, 4, 6], rel=1e-3, abs=1e-4)
    assert number(found[1]) == pytest.approx(1e-6, rel=1e-2)
    assert browser.run("document.getElementById('readout').innerHTML.includes('&lt;b&gt;Jy')")
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("kind", ["validation", "audit", "run"])
def test_pages_of_findings(
    kind: str,
    width: int,
    scheme: str,
    browser: Browser,
    run_path: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    if kind == "run":
        folder = run_path
    else:
        folder = tmp_path / kind
        request.getfixturevalue(kind).save(folder)
    browser.open(view(folder, tmp_path / "page.html"), width, 900, prefers_color_scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == width
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 27)"}[scheme]
    ink = browser.run("getComputedStyle(document.querySelector('.chart .k0')).color")
    assert ink == {"light": "rgb(0, 114, 178)", "dark": "rgb(108, 184, 234)"}[scheme]
    # what is wider than the window can be scrolled, also from the keyboard
    outside = browser.run(
        "[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg') && "
        "one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert browser.run("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0)")
    assert browser.run("[...document.images].every(one => one.complete && one.naturalWidth > 0 && one.alt)")
