// Conversations kept in this browser: { id, title, changed, turns }. Nothing of them is kept on the server.

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

let opened = null;

async function store(mode) {
  opened ??= (async () => {
    const request = indexedDB.open("sensorium", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    return done(request);
  })();
  return (await opened).transaction("conversations", mode).objectStore("conversations");
}

/** All conversations, the newest first. */
export async function all() {
  const found = await done((await store("readonly")).getAll());
  return found.sort((one, other) => other.changed - one.changed);
}

export async function keep(conversation) {
  return done((await store("readwrite")).put(conversation));
}

export async function forget(id) {
  return done((await store("readwrite")).delete(id));
}
