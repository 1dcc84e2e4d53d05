// The unmodified `openai` package for Node. Reads {baseURL, apiKey, endpoint, nonce} as its argument and prints, as JSON,
// what each scenario saw; the test looks behind it.
import OpenAI, { AzureOpenAI } from "openai";

const { baseURL, apiKey, endpoint, nonce } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const ask = (text) => [{ role: "user", content: `${text} [${nonce}]` }];
const tools = [
  {
    type: "function",
    function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
  },
];

async function chat() {
  const { data, response } = await client.chat.completions
    .create({ model: "support", messages: ask("chat") })
    .withResponse();
  return { id: data.id, text: data.choices[0].message.content, header: response.headers.get("x-headway-interaction") };
}

async function stream() {
  const ids = new Set();
  let text = "";
  let usages = 0;
  for await (const chunk of await client.chat.completions.create({
    model: "support",
    messages: ask("stream"),
    stream: true,
  })) {
    ids.add(chunk.id);
    text += chunk.choices[0]?.delta?.content ?? "";
    usages += chunk.usage ? 1 : 0;
  }
  return { ids: [...ids], text, usages };
}

async function streamedTools() {
  const runner = client.chat.completions.stream({ model: "support", messages: ask("tools"), tools });
  const final = await runner.finalChatCompletion();
  return { id: final.id, calls: final.choices[0].message.tool_calls.map((call) => call.function) };
}

async function responses() {
  const first = await client.responses.create({ model: "support", input: `responses [${nonce}]` });
  const streamed = client.responses.stream({ model: "support", input: "more", previous_response_id: first.id });
  const second = await streamed.finalResponse();
  return {
    first: { id: first.id, text: first.output_text },
    second: { id: second.id, text: second.output_text, previous: second.previous_response_id },
  };
}

async function embeddings() {
  const answer = await client.embeddings.create({ model: "support", input: ["one", "two"] });
  return { lengths: answer.data.map((item) => item.embedding.length) };
}

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return { names };
}

async function azure() {
  const other = new AzureOpenAI({ endpoint, apiKey, apiVersion: "2024-10-21", maxRetries: 0 });
  const answer = await other.chat.completions.create({ model: "support", messages: ask("azure") });
  return { id: answer.id, text: answer.choices[0].message.content };
}

async function errors() {
  const seen = {};
  const attempt = async (name, make) => {
    try {
      await make();
      seen[name] = null;
    } catch (error) {
      seen[name] = { kind: error.constructor.name, status: error.status, code: error.code };
    }
  };
  await attempt("unknown", () => client.chat.completions.create({ model: "nobody", messages: ask("x") }));
  const stranger = new OpenAI({ baseURL, apiKey: "hw-wrong", maxRetries: 0 });
  await attempt("stranger", () => stranger.chat.completions.create({ model: "support", messages: ask("x") }));
  await attempt("negative", () =>
    client.chat.completions.create({ model: "support", messages: ask("x"), max_completion_tokens: -1 }),
  );
  return seen;
}

const scenarios = { chat, stream, streamedTools, responses, embeddings, models, azure, errors };
const results = {};
for (const [name, scenario] of Object.entries(scenarios)) results[name] = await scenario();
console.log(JSON.stringify(results));
