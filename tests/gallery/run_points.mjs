// Answers requests of the playground under Node, with the files that its page loads. Arguments: the folder of Pyodide,
// the playground's folder, a JSON file of requests, and the JSON file to write the answers to.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [pyodide, folder, requests, answers] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(join(pyodide, "pyodide.mjs")));
const started = process.cpuUsage().user;
const spent = () => (process.cpuUsage().user - started) / 1e6;
const python = await loadPyodide({
  indexURL: pyodide,
  stdLibURL: join(folder, "python_stdlib.zip"),
  lockFileContents: readFileSync(join(folder, "pyodide-lock.json"), "utf8"),
  packageBaseUrl: ".",
});
const times = { load: spent() };
const [, program] = readFileSync(join(folder, "worker.js"), "utf8").match(/const PROGRAM = `([^`]*)`/);
python.unpackArchive(new Uint8Array(readFileSync(join(folder, "zoo.zip"))), "zip", { extractDir: "/lib/python3.14/site-packages" });
times.unpack = spent();
const answer = python.runPython(program);
times.import = spent();
const found = [];
for (const request of JSON.parse(readFileSync(requests, "utf8"))) {
  const before = spent();
  const text = answer(JSON.stringify(request)); // kept as it is: JavaScript has no whole numbers beyond 2 ** 53
  found.push(`{"seconds": ${spent() - before}, "answer": ${text}}`);
}
writeFileSync(answers, `{"times": ${JSON.stringify(times)}, "found": [${found.join(",\n")}]}`);
