// What a page does wrong for people who hear it, tab through it, enlarge it or see little contrast; [] when nothing.
() => {
  const wrong = [];
  const say = (what, element) => wrong.push(element ? `${what}: ${element.outerHTML.slice(0, 120)}` : what);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (element) => element.checkVisibility({ visibilityProperty: true }) && !element.closest(".visually-hidden, .skip");
  const named = (element) =>
    (element.getAttribute("aria-label") || element.textContent || element.querySelector("img")?.alt || "").trim();

  // Structure
  if (document.documentElement.lang !== "en") say("the page does not name its language");
  if (!/\S+/.test(document.title)) say("no title");
  for (const landmark of ["main", "header"]) if (all(`body > ${landmark}`).length !== 1) say(`not exactly one ${landmark}`);
  if (all("h1").length !== 1) say(`${all("h1").length} headings of the first level`);
  let level = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    if (Number(heading.tagName[1]) > level + 1) say("a heading skips a level", heading);
    level = Number(heading.tagName[1]);
  }
  const ids = all("[id]").map((element) => element.id);
  for (const id of new Set(ids.filter((id, index) => ids.indexOf(id) !== index))) say(`the id ${id} is there twice`);
  for (const name of ["aria-labelledby", "aria-describedby", "for"])
    for (const element of all(`[${name}]`))
      for (const id of element.getAttribute(name).split(/\s+/)) if (!document.getElementById(id)) say(`${name} leads nowhere`, element);
  for (const image of all("img:not([alt])")) say("an image without a text", image);
  for (const cell of all("th:not([scope])")) say("a table heading without scope", cell);
  for (const element of all("a[href], button, summary")) if (!named(element)) say("nothing to read out", element);
  for (const input of all("input:not([type=hidden]), textarea, select"))
    if (![...(input.labels || [])].some(named) && !input.getAttribute("aria-label")) say("no label", input);
  for (const fieldset of all("fieldset")) if (!fieldset.querySelector("legend")) say("no legend", fieldset);
  for (const element of all("[style], script, style")) say("the content security policy forbids this", element);

  // Contrast, of every text that is to be seen (WCAG 1.4.3) and of the edges of what is filled in or pressed (1.4.11)
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !shown(element)) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = contrast(style.color, ground(element));
    if (ratio < (large ? 3 : 4.5)) say(`contrast ${ratio.toFixed(2)}`, element);
  }
  for (const field of all("input:not([type=hidden], [type=radio], [type=checkbox]), textarea").filter(shown)) {
    const style = getComputedStyle(field);
    const text = contrast(style.color, style.backgroundColor);
    const hint = contrast(getComputedStyle(field, "::placeholder").color, style.backgroundColor);
    const edge = contrast(style.borderColor, ground(field.parentElement));
    if (field.matches(":disabled")) continue;
    if (Math.min(text, hint) < 4.5) say(`contrast ${Math.min(text, hint).toFixed(2)} inside`, field);
    if (!field.readOnly && edge < 3) say(`contrast ${edge.toFixed(2)} of its edge`, field);
  }

  // Room: nothing to scroll sideways, and nothing to press that is smaller than a fingertip (WCAG 1.4.10, 2.5.8)
  if (document.documentElement.scrollWidth > innerWidth) {
    say(`${document.documentElement.scrollWidth - innerWidth} pixels stick out on the right`);
    for (const element of all("main *")) if (shown(element) && element.getBoundingClientRect().right > innerWidth + 1) say("sticks out", element);
  }
  for (const element of all("button, .button, summary, input:not([type=hidden], [type=radio], [type=checkbox])").filter(shown)) {
    const box = element.getBoundingClientRect();
    if (box.width < 24 || box.height < 24) say(`only ${box.width} by ${box.height}`, element);
  }
  return wrong;
}
