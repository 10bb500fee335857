// One WebSocket by Node's `ws`, driven over standard input and told on standard output,
// a line of JSON for each thing that is to happen and that happened.
//
//   node client.mjs URL [OPTIONS]   OPTIONS is JSON for `ws`: headers, origin, protocols
//   in    {"text": "…"}  {"binary": "base64"}  {"close": 1000}
//   out   {"open": "subprotocol"}  {"text": "…"}  {"binary": "base64"}
//         {"status": 403}  {"close": 1008, "reason": "…"}  {"error": "…"}
import { createInterface } from "node:readline";
import WebSocket from "ws";

const [url, options = "{}"] = process.argv.slice(2);
const { protocols = [], ...rest } = JSON.parse(options);
const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n");

const socket = new WebSocket(url, protocols, { perMessageDeflate: true, ...rest });
socket.on("open", () => tell({ open: socket.protocol }));
socket.on("message", (data, isBinary) =>
  tell(isBinary ? { binary: data.toString("base64") } : { text: data.toString() }),
);
socket.on("unexpected-response", (_, response) => {
  tell({ status: response.statusCode, headers: response.headers });
  process.exit();
});
socket.on("error", (error) => tell({ error: error.message }));
socket.on("close", (code, reason) => {
  tell({ close: code, reason: reason.toString() });
  process.exit();
});

const input = createInterface({ input: process.stdin });
input.on("line", (line) => {
  const order = JSON.parse(line);
  if ("text" in order) socket.send(order.text);
  if ("binary" in order) socket.send(Buffer.from(order.binary, "base64"));
  if ("close" in order) socket.close(order.close, "bye");
});
input.on("close", () => socket.terminate());
