// Runs Zoo's own pricing in Pyodide, beside the page. A message in: {id, request}; out: {id, answer} or {id, error}.
import { loadPyodide } from "./pyodide.mjs";

const PACKAGES = "/lib/python3.14/site-packages";

const PROGRAM = `
import json
from zoo.gallery.playground.live_price import answer_request

def answer(request):
    return json.dumps(answer_request(json.loads(request)))
answer
`;

// The largest file is stored compressed, so that a plain server sends it small.
const plainFetch = self.fetch.bind(self);
self.fetch = async (source, options) => {
  const address = String(source.url ?? source);
  if (!address.endsWith(".wasm")) return plainFetch(source, options);
  const stored = await plainFetch(`${address}.gz`);
  if (!stored.ok) return stored;
  const whole = stored.body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(whole, { headers: { "Content-Type": "application/wasm" } });
};

async function fetchModules() {
  const found = await plainFetch(new URL("zoo.zip", import.meta.url));
  if (!found.ok) throw new Error(`zoo.zip: ${found.status}`);
  return found.arrayBuffer();
}

async function start() {
  const [python, modules] = await Promise.all([
    loadPyodide({ indexURL: new URL(".", import.meta.url).href }),
    fetchModules(),
  ]);
  self.postMessage({ status: "Reading Zoo" });
  python.unpackArchive(modules, "zip", { extractDir: PACKAGES });
  self.postMessage({ status: "Pricing" });
  return python.runPython(PROGRAM);
}

const ready = start();
ready.catch((error) => self.postMessage({ failed: String(error.message ?? error) }));

self.onmessage = async ({ data: { id, request } }) => {
  try {
    const answer = await ready;
    const before = performance.now();
    const text = answer(JSON.stringify(request));
    self.postMessage({ id, answer: JSON.parse(text), seconds: (performance.now() - before) / 1000 });
  } catch (error) {
    const lines = String(error.message ?? error).trim().split("\n");
    self.postMessage({ id, error: lines[lines.length - 1] });
  }
};
