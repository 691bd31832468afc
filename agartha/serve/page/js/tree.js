// A conversation is a tree: an edited prompt or a new reply is a sibling of the old one. Pure functions over plain objects.
//
// lane: {model, nodes: {id: node}, children: {id | "root": [ids]}, chosen: {id | "root": id}}
// node: {id, parent, role, content, state, ...}, state being "done", "waiting", "streaming", "stopped" or "failed"

/** 96 random bits in hexadecimal; crypto.randomUUID is missing where the page is served over plain HTTP. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newLane(model) {
  return { model, nodes: {}, children: { root: [] }, chosen: {} };
}

/** Add a node below `parent` (an id or "root"), choose it, and return it. */
export function add(lane, parent, fields) {
  const node = { id: newId(), parent, state: "done", created: Date.now(), ...fields };
  lane.nodes[node.id] = node;
  lane.children[node.id] = [];
  lane.children[parent].push(node.id);
  lane.chosen[parent] = node.id;
  return node;
}

/** The nodes that are shown: from the root along the chosen children. */
export function path(lane) {
  const nodes = [];
  for (let at = "root"; lane.chosen[at]; at = lane.chosen[at]) nodes.push(lane.nodes[lane.chosen[at]]);
  return nodes;
}

/** The nodes from the root to `node`, without it. */
export function above(lane, node) {
  const nodes = [];
  for (let at = node.parent; at !== "root"; at = lane.nodes[at].parent) nodes.unshift(lane.nodes[at]);
  return nodes;
}

/** All alternatives to `node`, itself included, oldest first. */
export function siblings(lane, node) {
  return lane.children[node.parent];
}

/** Show the sibling `by` places on; null where there is none. */
export function step(lane, node, by) {
  const ids = siblings(lane, node);
  const id = ids[ids.indexOf(node.id) + by];
  if (!id) return null;
  lane.chosen[node.parent] = id;
  return lane.nodes[id];
}

export function leaf(lane) {
  return path(lane).at(-1) ?? null;
}

/** The messages that a reply below `nodes` would be asked with. A failed reply was never said. */
export function messages(system, nodes) {
  const said = nodes.filter((node) => node.role === "user" || node.content || node.thinking);
  const spoken = said.map((node) => {
    const message = { role: node.role, content: node.content };
    if (node.thinking) message.reasoning_content = node.thinking;
    return message;
  });
  return system ? [{ role: "system", content: system }, ...spoken] : spoken;
}
