// A SIP event publisher and watcher over SIP.js and a WebSocket, driven by JSON objects on lines of standard input:
//
//   node peer.mjs WEBSOCKET-URL AOR [ORIGIN]      ORIGIN is that of the web page
//
//   {"command":"subscribe","id":"s1","uri":"sip:...","event":"presence","expires":600,"headers":["Supported: eventlist"]}
//   {"command":"refresh","id":"s1"}     {"command":"unsubscribe","id":"s1"}
//   {"command":"publish","id":"p1","uri":"sip:...","expires":600,"body":"..."}     the same id again modifies
//   {"command":"unpublish","id":"p1"}
//   {"command":"destroy"}               the connection ends without a word, as when a browser dies
//   {"command":"reconnect"}             the same user agent on a new connection
//   {"command":"quit"}                  SIP.js takes everything back and closes the connection
//
// Each thing that happens is a JSON object on a line of standard output, in order. "message" has the bytes of one WebSocket
// message in base64; "notify" says that SIP.js gave a NOTIFY to its application, by the Call-ID of the subscription.
import { createInterface } from "node:readline";
import WS from "ws";

const [url, aor, origin] = process.argv.slice(2);
const say = (event, more = {}) => process.stdout.write(JSON.stringify({ event, ...more }) + "\n");

let sockets = 0;
let current;

class Socket extends WS {
  constructor(address, protocols) {
    super(address, protocols, { origin });
    this.number = ++sockets;
    current = this;
    this.on("open", () => say("open", { socket: this.number, text: this.protocol }));
    this.on("close", () => say("closed", { socket: this.number }));
    this.on("error", (e) => say("failed", { socket: this.number, text: e.message }));
    this.on("message", (data) => this.trace(false, data));
  }

  send(data, ...rest) {
    this.trace(true, Buffer.from(data));
    super.send(data, ...rest);
  }

  trace(sent, data) {
    say("message", { socket: this.number, sent, raw: data.toString("base64") });
  }
}

// SIP.js looks for the browser's own.
globalThis.WebSocket = Socket;
const { Publisher, Subscriber, UserAgent } = await import("sip.js");

const agent = new UserAgent({
  uri: UserAgent.makeURI(aor),
  transportOptions: { server: url },
  logBuiltinEnabled: false,
  logConnector: (level, category, label, content) => process.stderr.write(`${level} ${category} ${content}\n`),
});
const handles = new Map();

function subscribe({ id, uri, event, expires, headers }) {
  const s = new Subscriber(agent, UserAgent.makeURI(uri), event, { expires, extraHeaders: headers });
  s.delegate = {
    onNotify: (n) => {
      n.accept();
      say("notify", { id, text: n.request.callId });
    },
  };
  s.stateChange.addListener((state) => say("state", { id, text: state }));
  handles.set(id, s);
  say("subscriber", { id, text: s.outgoingRequestMessage.callId });
  return s.subscribe();
}

function publish({ id, uri, expires, body }) {
  let p = handles.get(id);
  if (!p) {
    p = new Publisher(agent, UserAgent.makeURI(uri), "presence", { body, contentType: "application/pidf+xml", expires });
    p.stateChange.addListener((state) => say("state", { id, text: state }));
    handles.set(id, p);
  }
  return p.publish(body);
}

const commands = {
  subscribe,
  publish,
  refresh: ({ id }) => handles.get(id).subscribe(),
  unsubscribe: ({ id }) => handles.get(id).unsubscribe(),
  unpublish: ({ id }) => handles.get(id).unpublish(),
  destroy: () => current.terminate(),
  reconnect: () => agent.reconnect(),
  quit: async () => {
    await agent.stop();
    process.exit(0);
  },
};

process.on("unhandledRejection", (e) => say("error", { text: String(e) }));
createInterface({ input: process.stdin })
  .on("line", async (line) => {
    try {
      const c = JSON.parse(line);
      await commands[c.command](c);
    } catch (e) {
      say("error", { text: String(e) });
    }
  })
  .on("close", () => process.exit(0)); // the test is gone

try {
  await agent.start();
  say("ready");
} catch (e) {
  say("error", { text: String(e) });
}
