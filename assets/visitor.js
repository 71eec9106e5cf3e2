// Identifies the visitor in each request to this app: by a random token, stored in this browser, and by the secret
// of a share link, which follows # in the address so that it appears in no server log.
(() => {
  const NAME = 'peft-workbench-visitor';
  const isSecret = (value) => /^[0-9a-f]{64}$/.test(value ?? '');
  const makeToken = () =>
    Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => byte.toString(16).padStart(2, '0')).join('');
  const readToken = () => {
    try {
      const stored = localStorage.getItem(NAME);
      if (isSecret(stored)) return stored;
      const created = makeToken();
      localStorage.setItem(NAME, created);
      return created;
    } catch {
      return makeToken(); // without local storage the runs belong to this page until it is closed
    }
  };
  const token = readToken();
  const shareKey = new URLSearchParams(location.hash.slice(1)).get('key');
  const plainFetch = window.fetch;
  window.fetch = (resource, options) => {
    const url = new URL(resource instanceof Request ? resource.url : resource, location.href);
    if (url.origin !== location.origin) return plainFetch(resource, options);
    const headers = new Headers(options?.headers ?? (resource instanceof Request ? resource.headers : undefined));
    headers.set('X-Visitor-Token', token);
    if (isSecret(shareKey)) headers.set('X-Share-Key', shareKey);
    return plainFetch(resource, { ...options, headers });
  };
  window.addEventListener('hashchange', () => location.reload()); // another share link, in the same tab
})();
