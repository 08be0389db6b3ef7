// Something to ask about when nothing is at hand: drawn scenes of the kind the packaged model knows.

const COLOURS = { red: "#d92626", green: "#1f9d3a", blue: "#2a4fd6", yellow: "#f0c419", purple: "#8a2bc2", orange: "#f07f13" };
const WORDS = ["HELLO", "LIGHT", "RIVER", "42", "APPLE", "2027"];
const SIZE = 448;

const pick = (list) => list[Math.floor(Math.random() * list.length)];

const SHAPES = {
  circle: (pen, x, y, r) => pen.arc(x, y, r, 0, 2 * Math.PI),
  square: (pen, x, y, r) => pen.rect(x - 0.85 * r, y - 0.85 * r, 1.7 * r, 1.7 * r),
  triangle: (pen, x, y, r) => {
    pen.moveTo(x, y - r);
    pen.lineTo(x + r, y + 0.8 * r);
    pen.lineTo(x - r, y + 0.8 * r);
    pen.closePath();
  },
};

function draw(pen, shape, colour, cell) {
  const place = SIZE / 3;
  const x = ((cell % 3) + 0.5) * place;
  const y = (Math.floor(cell / 3) + 0.5) * place;
  pen.fillStyle = COLOURS[colour];
  pen.beginPath();
  SHAPES[shape](pen, x, y, place * (0.24 + 0.12 * Math.random()));
  pen.fill();
}

/** Some of the nine cells of the picture, in any order. */
const cells = (count) => [...Array(9).keys()].sort(() => Math.random() - 0.5).slice(0, count);

const EXAMPLES = {
  count(pen) {
    const shape = pick(Object.keys(SHAPES));
    const colour = pick(Object.keys(COLOURS));
    for (const cell of cells(1 + Math.floor(Math.random() * 5))) draw(pen, shape, colour, cell);
    return `How many ${shape}s are there?`;
  },
  colour(pen) {
    const shape = pick(Object.keys(SHAPES));
    draw(pen, shape, pick(Object.keys(COLOURS)), pick(cells(9)));
    return `What colour is the ${shape}?`;
  },
  box(pen) {
    const places = cells(3);
    const shapes = Object.keys(SHAPES);
    shapes.forEach((shape, index) => draw(pen, shape, pick(Object.keys(COLOURS)), places[index]));
    return `Mark the ${pick(shapes)} with a box.`;
  },
  read(pen) {
    pen.fillStyle = "#111";
    pen.font = "600 96px sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(pick(WORDS), SIZE / 2, SIZE / 2);
    return "What does the text say?";
  },
};

/** A picture as a File, and a question about it. */
export async function makeExample(name) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, SIZE, SIZE);
  const question = EXAMPLES[name](pen);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return { file: new File([blob], "drawing.png", { type: "image/png" }), question };
}
