// An OpenID provider for tests: `node provider.mjs PORT CALLBACK IN_TOKEN`; its accounts come on standard input.
// IN_TOKEN says whether claims are in the ID token, or are asked for with the access token.
import { readFileSync } from "node:fs";
import Provider from "oidc-provider";

const [port, callback, inToken] = process.argv.slice(2);
const accounts = JSON.parse(readFileSync(0, "utf8"));
const client = {
  client_secret: "a-secret-of-the-tests-that-is-long-enough",
  redirect_uris: [callback],
  grant_types: ["authorization_code"],
  response_types: ["code"],
};
const provider = new Provider(`http://localhost:${port}`, {
  clients: [
    { client_id: "c360", ...client },
    { client_id: "another", ...client },
  ],
  claims: { openid: ["sub", "c360_tenant", "groups"], email: ["email", "email_verified"], profile: ["name"] },
  conformIdTokenClaims: inToken !== "true",
  pkce: { required: () => true },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...accounts[id] }) }),
});
provider.listen(Number(port), "127.0.0.1", () => process.stdout.write("listening\n"));
