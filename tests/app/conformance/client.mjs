// Every method of the resources that the service has, through an unmodified openai package:
// node client.mjs PACKAGE URL KEY BASE
// Prints one JSON object: what came back of each, in the words that the test compares.
import { createServer } from 'node:http';

const [name, baseURL, apiKey, model] = process.argv.slice(2);
const { default: OpenAI, toFile } = await import(name);
let sent = [];
const counting = (url, init) => {
  sent.push(`${init.method} ${new URL(url).pathname}`);
  return fetch(url, init);
};
const client = new OpenAI({ baseURL, apiKey, fetch: counting });
const rows = (count) =>
  Array.from({ length: count }, (_, n) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: `Question ${n}?` },
        { role: 'assistant', content: `Four ${n}` },
      ],
    }) + '\n',
  ).join('');
const collect = async (pages) => {
  const found = [];
  for await (const item of pages) found.push(item.id);
  return found;
};
const failing = async (act) => {
  sent = [];
  try {
    await act();
  } catch (error) {
    return {
      class: error.constructor.name,
      status: error.status,
      code: error.code,
      param: error.param,
      hasRequestId: /^req_/.test(error.requestID ?? ''),
      requests: sent.length,
    };
  }
  return { class: 'none' };
};

const found = {};

const data = rows(12);
const file = await client.files.create({ file: await toFile(Buffer.from(data), 'train.jsonl'), purpose: 'fine-tune' });
found.file = { status: (await client.files.waitForProcessing(file.id)).status, filename: file.filename, bytes: file.bytes };
found.content = (await (await client.files.content(file.id)).text()) === data;
const more = [];
for (let n = 0; n < 6; n += 1) {
  const made = await client.files.create({ file: await toFile(Buffer.from(data), `${n}.jsonl`), purpose: 'fine-tune' });
  more.push(made.id);
}
const listed = await collect(client.files.list({ limit: 2 }));
found.files = listed.length === 7 && new Set(listed).size === 7 && listed[6] === file.id;
found.deleted = (await client.files.delete(more[0])).deleted;

const upload = await client.uploads.create({
  filename: 'parts.jsonl',
  purpose: 'fine-tune',
  bytes: data.length,
  mime_type: 'application/jsonl',
});
const parts = await Promise.all(
  [data.slice(0, 300), data.slice(300)].map(async (text) =>
    client.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(text), 'part') }),
  ),
);
const completed = await client.uploads.complete(upload.id, { part_ids: parts.map((part) => part.id) });
found.upload = { status: completed.status, bytes: completed.file.bytes };
const dropped = await client.uploads.create({
  filename: 'a',
  purpose: 'fine-tune',
  bytes: 5,
  mime_type: 'text/plain',
});
found.cancelledUpload = (await client.uploads.cancel(dropped.id)).status;

const jobs = [];
for (let n = 0; n < 7; n += 1) {
  const job = await client.fineTuning.jobs.create({
    model,
    training_file: file.id,
    suffix: `n${n}`,
    metadata: { number: `${n}` },
    seed: n,
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 2 } } },
    safety: { method: 'none' },
  });
  jobs.push(job.id);
}
const job = await client.fineTuning.jobs.retrieve(jobs[3]);
found.job = { status: job.status, seed: job.seed, epochs: job.hyperparameters.n_epochs, metadata: job.metadata };
found.jobs = JSON.stringify(await collect(client.fineTuning.jobs.list({ limit: 2 }))) === JSON.stringify([...jobs].reverse());
found.filtered = (await collect(client.fineTuning.jobs.list({ metadata: { number: '5' } })))[0] === jobs[5];
const events = await collect(client.fineTuning.jobs.listEvents(jobs[0], { limit: 1 }));
found.events = events.length === 3 && new Set(events).size === 3;
found.checkpoints = (await client.fineTuning.jobs.checkpoints.list(jobs[0])).data;
found.paused = (await client.fineTuning.jobs.pause(jobs[1])).status;
found.resumed = (await client.fineTuning.jobs.resume(jobs[1])).status;
found.cancelled = (await client.fineTuning.jobs.cancel(jobs[2])).status;

found.models = (await collect(client.models.list())).includes(model);
found.model = (await client.models.retrieve(model)).id;

const messages = [];
const receiver = createServer((request, response) => {
  let body = '';
  request.on('data', (piece) => (body += piece));
  request.on('end', () => {
    messages.push({ body, headers: request.headers });
    response.writeHead(201).end();
  });
});
await new Promise((listening) => receiver.listen(0, '127.0.0.1', listening));
const url = `http://127.0.0.1:${receiver.address().port}/hook`;
const bySecret = async (secret) => {
  const { body, headers } = messages.at(-1);
  try {
    return (await client.webhooks.unwrap(body, headers, secret)).type;
  } catch (error) {
    return error.constructor.name;
  }
};
// By hand: version 6 can check messages, and has no methods for what they come from.
const event_types = ['fine_tuning.job.succeeded'];
const [mine, other] = await Promise.all(
  ['mine', 'other'].map((name) => client.post('/webhook_endpoints', { body: { name, url, event_types } })),
);
await client.post(`/webhook_endpoints/${mine.id}/test`, { body: { event_type: 'fine_tuning.job.cancelled' } });
found.unwrapped = [await bySecret(mine.signing_secret), await bySecret(other.signing_secret)];

const manage = async () => {
  const seen = { types: (await client.webhooks.eventTypes.list()).data.slice(0, 3) };
  const hooks = [other.id, mine.id];
  for (let n = 0; n < 3; n += 1) hooks.push((await client.webhooks.create({ name: `n${n}`, url, event_types })).id);
  const listed = await collect(client.webhooks.list({ limit: 2 }));
  seen.listed = listed.length === 5 && hooks.every((id) => listed.includes(id)) && listed[0] === hooks[4];
  const updated = await client.webhooks.update(mine.id, { event_types: ['fine_tuning.job.failed'] });
  seen.updated = [updated.name, updated.event_types, 'signing_secret' in updated];
  seen.url = (await client.webhooks.retrieve(mine.id)).url === url;
  const kept = await client.webhooks.rotateSecret(mine.id, { keep_old_secret_active_for_24_hours: true });
  const tried = await client.webhooks.test(mine.id, { event_type: 'fine_tuning.job.failed' });
  seen.tried = [tried.object, tried.status_code, tried.success];
  seen.rotated = [await bySecret(mine.signing_secret), await bySecret(kept.signing_secret)];
  seen.again = (await client.webhooks.rotateSecret(mine.id)).signing_secret !== kept.signing_secret;
  const gone = await client.webhooks.delete(mine.id);
  seen.deleted = [gone.object, gone.deleted];
  seen.missing = await failing(() => client.webhooks.retrieve(mine.id));
  seen.refused = await failing(() => client.webhooks.create({ name: 'x', url: 'https://127.0.0.2/', event_types }));
  return seen;
};
found.webhooks = client.webhooks.create ? await manage() : null;
receiver.close();

found.errors = {
  key: await failing(() => new OpenAI({ baseURL, apiKey: 'sk-no', fetch: counting }).models.list()),
  file: await failing(() => client.fineTuning.jobs.create({ model, training_file: 'file-none' })),
  job: await failing(() => client.fineTuning.jobs.retrieve('ftjob-none')),
  finished: await failing(() => client.fineTuning.jobs.pause(jobs[2])),
  lines: await failing(async () =>
    client.files.create({ file: await toFile(Buffer.from('{}\n'), 'bad.jsonl'), purpose: 'fine-tune' }),
  ),
  type: await failing(() => client.fineTuning.jobs.create({ model, training_file: file.id, seed: 'x' })),
  model: await failing(() => client.models.delete(model)),
};
console.log(JSON.stringify(found));
