// Requests that a page of another site can send: each entry sends one kind to `url` and resolves when done.
const loaded = (element) =>
  new Promise((done) => {
    element.onload = element.onerror = element.onloadedmetadata = () => done();
    document.body.append(element);
    setTimeout(done, 3000); // a refused frame fires no event
  });
const make = (tag, properties) => loaded(Object.assign(document.createElement(tag), properties));
const submit = (url, method, enctype) => {
  const frame = Object.assign(document.createElement("iframe"), { name: `frame-${Math.random()}` });
  const form = Object.assign(document.createElement("form"), { action: url, method, enctype, target: frame.name });
  const query = method === "GET" ? new URL(url).searchParams : [];
  for (const [name, value] of [...query, ["fn_index", "0"]])
    form.append(Object.assign(document.createElement("input"), { name, value }));
  document.body.append(form);
  const done = loaded(frame);
  form.submit();
  return done;
};
const json = { method: "POST", body: '{"data":[{}]}' };
const file = () => {
  const body = new FormData();
  body.append("files", new Blob(["text,label\n"]), "canary.csv");
  return { method: "POST", body };
};

window.attacks = {
  "fetch": (url) => fetch(url),
  "fetch with cookies": (url) => fetch(url, { credentials: "include" }),
  "fetch unread": (url) => fetch(url, { mode: "no-cors", credentials: "include" }),
  "fetch JSON": (url) => fetch(url, { ...json, headers: { "Content-Type": "application/json" } }),
  "fetch JSON as text": (url) => fetch(url, { ...json, mode: "no-cors" }),
  "fetch a file": (url) => fetch(url, { ...file(), mode: "no-cors" }),
  "fetch without a referrer": (url) => fetch(url, { ...json, mode: "no-cors", referrerPolicy: "no-referrer" }),
  "fetch DELETE": (url) => fetch(url, { method: "DELETE" }),
  "beacon": async (url) => navigator.sendBeacon(url, '{"data":[{}]}'),
  "event stream": (url) =>
    new Promise((done) => {
      const source = new EventSource(url, { withCredentials: true });
      source.onopen = source.onerror = () => done(source.close());
    }),
  "WebSocket": (url) =>
    new Promise((done) => {
      const socket = new WebSocket(url.replace("http", "ws"));
      socket.onopen = socket.onerror = () => done(socket.close());
    }),
  "form": (url) => submit(url, "POST", "application/x-www-form-urlencoded"),
  "form with a file": (url) => submit(url, "POST", "multipart/form-data"),
  "form as text": (url) => submit(url, "POST", "text/plain"),
  "form of a link": (url) => submit(url, "GET", "application/x-www-form-urlencoded"),
  "image": (src) => make("img", { src }),
  "script": (src) => make("script", { src }),
  "module": (url) => import(url),
  "style sheet": (href) => make("link", { rel: "stylesheet", href }),
  "prefetch": (href) => make("link", { rel: "prefetch", href }),
  "frame": (src) => make("iframe", { src }),
  "frame without an origin": (src) => make("iframe", { src, sandbox: "allow-scripts" }),
  "object": (data) => make("object", { data }),
  "video": (src) => make("video", { src, preload: "metadata" }),
  "window": async (url) => {
    const opened = window.open(url);
    await new Promise((done) => setTimeout(done, 1500));
    opened?.close();
  },
};
