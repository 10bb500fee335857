// Node's `ws`: /ws is an echo, /room sends to one member after another.
import { WebSocketServer } from 'ws';

const members = new Set();
const server = new WebSocketServer({
  host: '127.0.0.1',
  port: Number(process.argv[2]),
  perMessageDeflate: false,
  backlog: 4096,
});

server.on('connection', (socket, request) => {
  socket.on('error', () => {});
  if (request.url !== '/room') {
    socket.on('message', (data, binary) => socket.send(data, { binary }));
    return;
  }
  members.add(socket);
  socket.on('close', () => members.delete(socket));
  socket.on('message', (data, binary) => {
    for (const member of members) member.send(data, { binary });
  });
});
