// Reads every run under a directory with @mcap/core, streaming and by the index, decodes the messages
// with the descriptor that the file carries, and compares all values with `tycho export --format jsonl`.
//   node check.js DIRECTORY TYCHO
'use strict';
const { execFileSync } = require('child_process');
const fs = require('fs');
const path = require('path');
const { McapIndexedReader, McapStreamReader } = require('@mcap/core');
const fzstd = require('fzstd');
const protobuf = require('protobufjs');
const { FileDescriptorSet } = require('protobufjs/ext/descriptor');

const decompressHandlers = { zstd: (bytes, size) => fzstd.decompress(bytes, new Uint8Array(Number(size))) };

function check(condition, text) {
  if (!condition) throw new Error(text);
}

function streaming(bytes) {
  const reader = new McapStreamReader({ validateCrcs: true, decompressHandlers });
  const found = { schemas: new Map(), channels: new Map(), messages: [], attachments: new Map() };
  // In pieces, as from a network.
  for (let at = 0; at < bytes.length; at += 10007) {
    reader.append(bytes.subarray(at, Math.min(at + 10007, bytes.length)));
    for (let record; (record = reader.nextRecord());) {
      if (record.type === 'Schema') found.schemas.set(record.id, record);
      if (record.type === 'Channel') found.channels.set(record.id, record);
      if (record.type === 'Message') found.messages.push(record);
      if (record.type === 'Attachment') found.attachments.set(record.name, record);
    }
  }
  check(reader.done(), 'the streaming reader did not see the end of the file');
  return found;
}

async function indexed(bytes) {
  const readable = {
    size: async () => BigInt(bytes.length),
    read: async (offset, length) => bytes.subarray(Number(offset), Number(offset + length)),
  };
  const reader = await McapIndexedReader.Initialize({ readable, decompressHandlers });
  check(reader.statistics !== undefined, 'there are no statistics');
  const messages = [];
  for await (const message of reader.readMessages({ validateCrcs: true })) messages.push(message);
  check(BigInt(messages.length) === reader.statistics.messageCount, 'statistics count other messages');
  let attachments = 0;
  for await (const attachment of reader.readAttachments()) attachments += attachment.data.length > 0 ? 1 : 0;
  check(attachments > 0, 'the index leads to no attachment');
  return messages;
}

function same(a, b) {
  return Object.is(a, b) || (Number.isNaN(a) && Number.isNaN(b));
}

function key(message) {
  return `${message.channelId} ${message.logTime} ${message.sequence} ${Buffer.from(message.data).toString('base64')}`;
}

function number(value) {
  if (typeof value === 'number') return value;
  if (value === 'nan' || value === null) return NaN;
  return value === 'inf' ? Infinity : value === '-inf' ? -Infinity : Number(value);
}

async function checkSegment(file) {
  const bytes = new Uint8Array(fs.readFileSync(file));
  const stream = streaming(bytes);
  const byIndex = (await indexed(bytes)).map(key).sort();
  const byStream = stream.messages.map(key).sort();
  check(byIndex.length === byStream.length && byIndex.every((k, i) => k === byStream[i]),
    'the index and the stream hold other messages');
  let root = null;
  for (const schema of stream.schemas.values()) {
    check(schema.encoding === 'protobuf', `schema ${schema.name} is encoded as ${schema.encoding}`);
    root = protobuf.Root.fromDescriptor(FileDescriptorSet.decode(schema.data));
  }
  const attachment = (name, type) => root.lookupType(`tycho.v1.${type}`).decode(stream.attachments.get(name).data);
  const values = [];
  if (root === null) return { values, resumeStep: null };
  const model = attachment('model_description', 'ModelDescription');
  const registry = attachment('statistic_registry', 'StatisticRegistry');
  const run = attachment('run_description', 'RunDescription');
  const names = new Map(registry.statistic.map((s) => [s.id, s.name]));
  for (const message of stream.messages) {
    const channel = stream.channels.get(message.channelId);
    const schema = stream.schemas.get(channel.schemaId);
    const decoded = root.lookupType(schema.name).decode(message.data);
    if (!channel.topic.startsWith('/probe/')) continue;
    for (const column of decoded.column) {
      column.value.forEach((value, i) => {
        const entity = column.entity[i];
        const scope = column.scope === 1 ? 'run' : column.scope === 2 ? `layer:${model.layer[entity].path}`
          : `param:${model.parameter[entity].name}`;
        values.push({ step: Number(decoded.step), scope, statistic: names.get(column.statistic), value });
      });
    }
  }
  return { values, resumeStep: run.resumed ? Number(run.resume_step ?? run.resumeStep) : null };
}

async function main() {
  const [root, tycho] = process.argv.slice(2);
  let compared = 0;
  const runs = fs.readdirSync(root).sort();
  check(runs.length > 0, `there is no run in ${root}`);
  for (const name of runs) {
    const directory = path.join(root, name);
    const segments = fs.readdirSync(directory).filter((f) => f.endsWith('.mcap')).sort();
    check(segments.length > 0, `${name} has no segment`);
    let values = [];
    for (const segment of segments) {
      try {
        const found = await checkSegment(path.join(directory, segment));
        // Of steps recorded twice the later ones count.
        if (found.resumeStep !== null) values = values.filter((v) => v.step < found.resumeStep);
        values = values.concat(found.values);
      } catch (error) {
        error.message = `${name}/${segment}: ${error.message}`;
        throw error;
      }
    }
    const lines = execFileSync(tycho, ['export', directory, '--format', 'jsonl'], { maxBuffer: 1 << 30 })
      .toString().split('\n').filter((line) => line !== '').map((line) => JSON.parse(line));
    check(lines.length === values.length, `${name}: ${values.length} values, ${lines.length} exported`);
    const order = (v) => `${String(v.step).padStart(20)} ${v.scope} ${v.statistic}`;
    const sort = (list) => list.sort((a, b) => (order(a) < order(b) ? -1 : order(a) > order(b) ? 1 : 0));
    sort(values);
    sort(lines);
    values.forEach((v, i) => {
      check(order(v) === order(lines[i]) && same(v.value, number(lines[i].value)),
        `${name}: ${JSON.stringify(v)} against ${JSON.stringify(lines[i])}`);
      ++compared;
    });
    console.log(`${name}: ${segments.length} segments, ${values.length} values`);
  }
  check(compared > 1000, `only ${compared} values were compared`);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
