// Counts the questions of a page that the app has not answered: joined to gradio's queue, not completed in its stream.
(() => {
  const fetchUncounted = window.fetch, asked = new Set(), answered = new Set();
  let asking = 0;
  window.unanswered = () => asking + [...asked].filter((id) => !answered.has(id)).length;
  const ask = async (request) => {
    asking += 1;
    try {
      const reply = await fetchUncounted(...request);
      if (reply.ok) asked.add((await reply.clone().json()).event_id);
      return reply;
    } finally {
      asking -= 1;
    }
  };
  const note = async (stream) => {
    let rest = "";
    for (const reader = stream.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      const messages = (rest + value).split("\n\n");
      rest = messages.pop();
      for (const message of messages.map((text) => JSON.parse(text.slice("data: ".length))))
        if (message.msg === "process_completed") answered.add(message.event_id);
    }
  };
  const listen = async (request) => {
    const reply = await fetchUncounted(...request);
    const [shown, counted] = reply.body.tee();
    note(counted).catch(() => {});  // the page ends the stream when all is answered
    return new Response(shown, reply);
  };
  window.fetch = (...request) => {
    const url = String(request[0].url ?? request[0]);
    if (url.includes("/queue/join")) return ask(request);
    return url.includes("/queue/data") ? listen(request) : fetchUncounted(...request);
  };
})();
