"use strict";

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null, // the default shows the document to a service of the makers
  persistAuthorization: false, // a pasted token is gone with the page
});
