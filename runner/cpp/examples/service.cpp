// A service that answers requests over a socket, with HTTP's simplest form:
//
//   arforge-service l.bundle 8080
//   curl 'http://127.0.0.1:8080/?class=207&seed=1&schedule=zipar:16&guidance=2' > image.ppm
//
// One thread a connection; the runner makes them take turns. A client that hangs up cancels its request.
#include <arforge.hpp>

#include <arpa/inet.h>
#include <cstring>
#include <iostream>
#include <map>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

namespace {

constexpr std::size_t MAX_HEAD = 8192; // bytes of a request
constexpr int SECONDS = 30;            // that a client may take to send or receive

using Query = std::map<std::string, std::string>;

// "GET /?class=3&seed=1 HTTP/1.1" to its parameters.
Query query_of(const std::string& head) {
  if (head.rfind("GET /", 0) != 0) {
    throw arforge::Error(arforge::Code::request, "send GET /?class=N&seed=N&schedule=TEXT&guidance=X");
  }
  Query query;
  const std::size_t end = head.find_first_of(" \r\n", 5);
  std::size_t start = std::min(head.find('?'), end);
  while (start < end) {
    const std::size_t next = std::min(head.find('&', start + 1), end);
    const std::string part = head.substr(start + 1, next - start - 1);
    const std::size_t equals = std::min(part.find('='), part.size());
    query[part.substr(0, equals)] = part.substr(std::min(equals + 1, part.size()));
    start = next;
  }
  return query;
}

arforge::Request request_of(const Query& query, int client) {
  arforge::Request request;
  for (const auto& [name, value] : query) {
    try {
      if (name == "class") {
        request.classes = {std::stoll(value)};
      } else if (name == "seed") {
        request.seeds = {std::stoull(value)};
      } else if (name == "guidance") {
        request.guidance = std::stod(value);
      } else if (name == "temperature") {
        request.temperature = std::stod(value);
      } else if (name == "top_k") {
        request.top_k = std::stoll(value);
      } else if (name == "top_p") {
        request.top_p = std::stod(value);
      } else if (name == "schedule") {
        request.schedule = value;
      } else {
        throw arforge::Error(arforge::Code::request, "no such parameter: " + name);
      }
    } catch (const std::logic_error&) { // of std::stoll and its like
      throw arforge::Error(arforge::Code::request, name + " is not a number that fits");
    }
  }
  request.progress = [client](std::int64_t, std::int64_t) {
    char byte = 0;
    return recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0; // 0: the client has hung up
  };
  return request;
}

// The pixels of one image as a portable pixmap, or what is wrong, with its status.
std::string answer(arforge::Runner& runner, const std::string& head, int client) {
  std::string status = "200 OK";
  std::string type = "image/x-portable-pixmap";
  std::string body;
  try {
    const arforge::Result result = runner.generate(request_of(query_of(head), client));
    body = "P6\n" + std::to_string(result.width) + " " + std::to_string(result.height) + "\n255\n";
    body.append(result.pixels.begin(), result.pixels.end());
  } catch (const arforge::Error& error) {
    const bool theirs = error.code() == arforge::Code::request || error.code() == arforge::Code::schedule;
    status = theirs ? "400 Bad Request" : "500 Internal Server Error";
    type = "text/plain";
    body = error.what() + std::string("\n");
  }
  return "HTTP/1.1 " + status + "\r\nContent-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\nConnection: close\r\n\r\n" + body;
}

void serve(arforge::Runner& runner, int client) {
  const timeval patience{SECONDS, 0};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  std::string head;
  while (head.find("\r\n\r\n") == std::string::npos && head.size() < MAX_HEAD) {
    char part[1024];
    const ssize_t size = recv(client, part, sizeof part, 0);
    if (size <= 0) {
      close(client);
      return;
    }
    head.append(part, static_cast<std::size_t>(size));
  }
  const std::string reply = answer(runner, head, client);
  for (std::size_t sent = 0; sent < reply.size();) {
    const ssize_t size = send(client, reply.data() + sent, reply.size() - sent, MSG_NOSIGNAL);
    if (size <= 0) {
      break;
    }
    sent += static_cast<std::size_t>(size);
  }
  close(client);
}

} // namespace

int main(int count, char** words) {
  if (count != 3) {
    std::cerr << "usage: arforge-service BUNDLE PORT\n";
    return 2;
  }
  try {
    arforge::Runner runner = arforge::Runner::open(words[1]);
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    const int on = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(words[2])));
    socklen_t size = sizeof address;
    auto* place = reinterpret_cast<sockaddr*>(&address);
    if (bind(server, place, size) != 0 || listen(server, 64) != 0 || getsockname(server, place, &size) != 0) {
      throw std::runtime_error(std::string("cannot listen: ") + std::strerror(errno));
    }
    std::cout << "listening on 127.0.0.1:" << ntohs(address.sin_port) << '\n' << std::flush;
    for (int client = accept(server, nullptr, nullptr); client >= 0; client = accept(server, nullptr, nullptr)) {
      std::thread(serve, std::ref(runner), client).detach();
    }
  } catch (const std::exception& error) {
    std::cerr << "arforge-service: " << error.what() << '\n';
  }
  return 1;
}
