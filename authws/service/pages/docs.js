"use strict";

// The Authorize button takes what a page can send. A cookie it cannot: the browser sends
// the one of POST /auth/session by itself, and refuses every other.
const canBeSent = (definition) => definition.first().get("in") !== "cookie";
const onlyWhatAPageCanSend = () => ({
  statePlugins: {
    auth: {
      wrapSelectors: {
        definitionsToAuthorize: (original) => (...given) =>
          original(...given)?.filter(canBeSent),
      },
    },
  },
});

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  plugins: [onlyWhatAPageCanSend],
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null, // the default shows the document to a service of the makers
  persistAuthorization: false, // a pasted token is gone with the page
});
