// Ask a transformers.js package questions: `node ask_transformers_js.mjs FOLDER QUESTIONS.json`; needs @huggingface/transformers.
// QUESTIONS.json is a list of `image` (a file), `question` and `tokens`, the most to generate. Prints one JSON list of answers.
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from '@huggingface/transformers';

env.allowRemoteModels = false;
env.localModelPath = '/';
const [folder, questions] = process.argv.slice(2).map((path) => resolve(path));
const processor = await AutoProcessor.from_pretrained(folder);
const model = await AutoModelForImageTextToText.from_pretrained(folder);
const answers = [];
for (const { image, question, tokens } of JSON.parse(readFileSync(questions))) {
    const turns = [{ role: 'user', content: [{ type: 'image' }, { type: 'text', text: question }] }];
    const text = processor.apply_chat_template(turns, { add_generation_prompt: true });
    const inputs = await processor(await RawImage.read(image), text);
    const ids = await model.generate({ ...inputs, max_new_tokens: tokens, do_sample: false });
    const fresh = ids.slice(null, [inputs.input_ids.dims.at(-1), null]);
    answers.push(processor.batch_decode(fresh, { skip_special_tokens: true })[0].trim());
}
console.log(JSON.stringify(answers));
