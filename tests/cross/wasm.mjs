// The C interface as a WebAssembly module: node tests/cross/wasm.mjs MODULE.wasm TASK MODEL.lpk [TEXT [TOKENS]]
//   selftest              the digest of what the module computes from the file's tokens, if it is the packer's
//   generate PROMPT N     the greedy continuation
//   classify TEXT         the label, then each label's score
//   speed TEXT N          milliseconds that a prompt of N tokens of the text takes, and N steps of one token: medians of 9
// lora_runtime.h documents the functions; a pointer is a 32-bit number here, and structures have C's layout.
import { readFileSync } from 'node:fs';

const [file, task, modelFile, text = '', tokens = '64'] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(readFileSync(file), {});
const lora = instance.exports;

// The module allocates nothing, so all memory behind what it began with is ours.
let end = lora.memory.buffer.byteLength;
function room(bytes) {
  const at = Math.ceil(end / 64) * 64;
  end = at + bytes;
  const missing = end - lora.memory.buffer.byteLength;
  if (missing > 0) lora.memory.grow(Math.ceil(missing / 65536));
  return at;
}
const bytesAt = (at, length) => new Uint8Array(lora.memory.buffer, at, length);
const numberAt = (at) => new DataView(lora.memory.buffer).getUint32(at, true);
const floatAt = (at) => new DataView(lora.memory.buffer).getFloat32(at, true);
const textAt = (at, length) => new TextDecoder().decode(bytesAt(at, length));
function put(bytes) {
  const at = room(bytes.length);
  bytesAt(at, bytes.length).set(bytes);
  return at;
}

const error = room(40);
function call(name, ...values) {
  if (lora[name](...values, error) === 0) return;
  const message = room(256);
  lora.lora_error_message(error, message, 256);
  throw new Error(`${name}: ${textAt(message, 256).split('\0')[0]}`);
}

const bytes = readFileSync(modelFile);
const model = room(2048);
call('lora_model_open', model, put(bytes), bytes.length);
const result = room(16);

function session(plan, ...sizes) {
  const config = room(40);
  call(plan, model, ...sizes, config);
  call('lora_session_bytes', model, config, result);
  const size = numberAt(result);
  call('lora_session_open', model, config, 1, room(size), size, result);
  return numberAt(result);
}

function encode(string) {
  const utf8 = new TextEncoder().encode(string);
  const capacity = utf8.length + 8;
  const words = lora.lora_encode_words(model, utf8.length, capacity);
  const ids = room(4 * capacity);
  call('lora_encode', model, put(utf8), utf8.length, 0, room(4 * words), words, ids, 0, 0, capacity, result);
  return [ids, numberAt(result)];
}

const tasks = {
  selftest() {
    call('lora_selftest', session('lora_config_selftest', 8), result);
    console.log(new DataView(lora.memory.buffer).getBigUint64(result, true).toString(16).padStart(16, '0'));
  },
  generate() {
    const [ids, count] = encode(text);
    const most = Number(tokens);
    const info = room(96);
    call('lora_model_info', model, info);
    const eos = Array.from({ length: numberAt(info + 36) }, (_, i) => numberAt(info + 40 + 4 * i));
    const run = session('lora_config_init', count + most, 8);
    const decoder = room(1536);
    const piece = room(256);
    const show = (name, ...values) => {
      call(name, decoder, ...values, piece, 256, result);
      process.stdout.write(textAt(piece, numberAt(result)));
    };
    call('lora_decoder_init', decoder, model, 1);
    call('lora_session_feed', run, 1, ids, 0, count, 0);
    for (let past = count; past < count + most; past++) {
      call('lora_choose', run, 0, 0, ids);
      if (eos.includes(numberAt(ids))) break;
      show('lora_decoder_push', numberAt(ids));
      call('lora_session_feed', run, 1, ids, 0, 1, past);
    }
    show('lora_decoder_finish');
    console.log();
  },
  classify() {
    const [ids, count] = encode(text);
    const run = session('lora_config_init', count, count);
    const [best, scores, labels] = [result, result + 4, result + 8];
    call('lora_classify', run, ids, 0, count, best, scores, labels);
    const name = (label) => {
      const place = room(8);
      call('lora_model_label', model, label, place);
      return textAt(numberAt(place), numberAt(place + 4));
    };
    const [winner, at, n] = [numberAt(best), numberAt(scores), numberAt(labels)];
    const all = Array.from({ length: n }, (_, i) => [name(i), Number(floatAt(at + 4 * i).toFixed(6))]);
    console.log(JSON.stringify({ label: name(winner), scores: Object.fromEntries(all) }));
  },
  speed() {
    const [ids, count] = encode(text);
    const n = Number(tokens);
    const prompt = new DataView(lora.memory.buffer, room(4 * n), 4 * n);
    for (let i = 0; i < n; i++) prompt.setUint32(4 * i, numberAt(ids + 4 * (i % count)), true);
    const at = prompt.byteOffset;
    const run = session('lora_config_init', 2 * n, n);
    const median = (work) => Array.from({ length: 9 }, () => {
      const start = performance.now();
      work();
      return performance.now() - start;
    }).sort((a, b) => a - b)[4].toFixed(1);
    const read = median(() => call('lora_session_feed', run, 1, at, 0, n, 0));
    const steps = median(() => { for (let i = 0; i < n; i++) call('lora_session_feed', run, 1, at, 0, 1, n + i); });
    console.log(`${n} tokens: prompt ${read} ms, steps ${steps} ms`);
  },
};
tasks[task]();
