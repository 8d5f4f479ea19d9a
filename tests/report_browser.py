#!/usr/bin/env python3
"""Opens pages in Chromium, without a network, and fails on anything that a reader would stumble over.

    report_browser.py PAGE...                     check: console messages, errors, requests, sideways scrolling
    report_browser.py --shots FOLDER PAGE...      and keep pictures of every page, light and dark, wide and narrow

Each page is opened light and dark, as wide as a desk and as a phone. Without Chromium nothing is checked, which fails only if
REQUIRE_BROWSER is 1. Needs no packages: the browser is spoken to over a pipe.
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"wide": 1280, "phone": 360}
SLICE = 1600


class Browser:
    def __init__(self, program, profile):
        commands, self.write = os.pipe()
        self.read, answers = os.pipe()
        self.number, self.buffer, self.events = 0, b"", []

        def pipes():
            # Chromium reads commands on 3 and answers on 4.
            first, second = os.dup(commands), os.dup(answers)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
             "--no-first-run", "--disable-extensions", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)

    def message(self):
        while b"\0" not in self.buffer:
            more = os.read(self.read, 1 << 20)
            if not more:
                sys.exit("the browser went away")
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def __call__(self, method, session=None, **params):
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if session:
            command["sessionId"] = session
        os.write(self.write, json.dumps(command).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    sys.exit(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def wait(self, method):
        while True:
            for event in self.events:
                if event["method"] == method:
                    return
            self.events.append(self.message())

    def close(self):
        os.write(self.write, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        self.process.wait(timeout=30)


def look(browser, page, scheme, width, shot):
    """What is wrong with a page, as sentences."""
    target = browser("Target.createTarget", url="about:blank")["targetId"]
    session = browser("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser(f"{domain}.enable", session)
    browser("Network.emulateNetworkConditions", session, offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    browser("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser("Emulation.setDeviceMetricsOverride", session, width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    browser.events.clear()
    url = pathlib.Path(page).resolve().as_uri()
    browser("Page.navigate", session, url=url)
    browser.wait("Page.loadEventFired")

    def ask(expression):
        return browser("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"].get("value")

    wrong = []
    scroll = ask("document.documentElement.scrollWidth")
    if scroll > width:
        culprits = ask("""[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
            && !e.closest('.scroll, svg')).slice(0, 3).map(e => e.outerHTML.slice(0, 120)).join(' ; ')""")
        wrong.append(f"{scroll} px wide on a screen of {width}: {culprits}")
    if ask("document.compatMode") != "CSS1Compat":
        wrong.append("quirks mode: not HTML5")
    if ask("window.alerted === true"):
        wrong.append("a script of the text ran")
    if scripts := ask("document.scripts.length"):
        wrong.append(f"{scripts} scripts")
    # Text that the eye cannot tell from its background: WCAG asks for 4.5.
    faint = ask(CONTRAST)
    if faint:
        wrong.append(f"faint text: {faint}")
    for event in browser.events:
        kind, params = event["method"], event["params"]
        if kind == "Runtime.consoleAPICalled":
            wrong.append(f"console: {params['args']}")
        elif kind == "Runtime.exceptionThrown":
            wrong.append(f"exception: {params['exceptionDetails'].get('text')}")
        elif kind == "Log.entryAdded":
            wrong.append(f"log: {params['entry'].get('text')}")
        elif kind == "Page.javascriptDialogOpening":
            wrong.append("a dialog opened")
        elif kind == "Network.requestWillBeSent" and params["request"]["url"] != url:
            wrong.append(f"request: {params['request']['url'][:120]}")
    if shot:
        height = ask("document.documentElement.scrollHeight")
        # In slices, as one picture of a long page is too small to see anything on.
        for i, top in enumerate(range(0, height, SLICE)):
            clip = {"x": 0, "y": top, "width": width, "height": min(SLICE, height - top), "scale": 1}
            picture = browser("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)
            shot.with_name(f"{shot.name}-{i:02}.png").write_bytes(base64.b64decode(picture["data"]))
    browser("Target.closeTarget", targetId=target)
    return wrong


CONTRAST = """(() => {
    const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
    const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] > .99) return c.slice(0, 3); } return [255, 255, 255]; };
    const bad = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode());) {
        const e = node.parentElement;
        if (!node.data.trim() || e.closest('svg, title') || !e.getClientRects().length) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((a, b) => b - a);
        const ratio = (a + .05) / (b + .05);
        if (ratio < 4.5) bad.push(`${ratio.toFixed(1)} for "${node.data.trim().slice(0, 30)}"`);
    }
    return [...new Set(bad)].slice(0, 5).join('; ');
})()"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=pathlib.Path, help="folder for pictures")
    parser.add_argument("pages", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            sys.exit("Chromium is required and not there")
        print("skipped: no Chromium")
        return
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    failures = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        for page in args.pages:
            for scheme in ("light", "dark"):
                for name, width in WIDTHS.items():
                    shot = args.shots and args.shots / f"{page.stem}-{scheme}-{name}"
                    wrong = look(browser, page, scheme, width, shot)
                    failures += len(wrong)
                    print(f"{page.name}, {scheme}, {name}: {'ok' if not wrong else ''}")
                    for sentence in wrong:
                        print(f"  {sentence}")
        browser.close()
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
