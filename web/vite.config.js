// Builds one HTML file with everything in it. Its policy allows the one script and the one style that
// were built, by their digests, and no request at all. Python puts the document in the place of the mark.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

const digest = (text) => `'sha256-${createHash("sha256").update(text, "utf8").digest("base64")}'`;

function onePage() {
  return {
    name: "one-page",
    generateBundle(_options, bundle) {
      let script = "";
      for (const [name, part] of Object.entries(bundle)) {
        if (part.type === "chunk") script += part.code;
        delete bundle[name];
      }
      script = script.trim().replaceAll("</script", "<\\/script");
      const style = readFileSync(new URL("src/page.css", import.meta.url), "utf8").trim();
      const policy = [
        "default-src 'none'",
        `script-src ${digest(script)}`,
        `style-src ${digest(style)}`,
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
      ].join("; ");
      const page = readFileSync(new URL("page.html", import.meta.url), "utf8")
        .replace("%POLICY%", () => policy)
        .replace("%STYLE%", () => style)
        .replace("%SCRIPT%", () => script);
      this.emitFile({ type: "asset", fileName: "inspect.html", source: page });
    },
  };
}

export default defineConfig({
  plugins: [onePage()],
  build: {
    outDir: "../src/vitral/lens/static",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    rollupOptions: { input: "src/main.ts", output: { format: "iife" } },
  },
});
