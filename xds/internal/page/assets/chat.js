// chat talks to the mesh, by way of xds.

import { id } from "./dom.js";

/** Chat is the box. */
export class Chat {
  draw(fleet) {
    id("chat-off").hidden = fleet.chat;
    id("chat-box").hidden = !fleet.chat;
  }
}
