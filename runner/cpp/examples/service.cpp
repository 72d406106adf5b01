// A service that answers requests over a socket, with HTTP's simplest form:
//
//   arforge-service l.bundle 8080
//   curl 'http://127.0.0.1:8080/?class=207&seed=1&schedule=zipar:16&guidance=2' > image.ppm
//   curl 'http://127.0.0.1:8080/?ids=3,9,1&seed=1' > image.ppm      # a prompt, by the ids of its tokens
//
// One thread a connection; the runner makes them take turns. A client that hangs up cancels its request.
#include <arforge.hpp>

#include <arpa/inet.h>
#include <charconv>
#include <cstring>
#include <iostream>
#include <map>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

namespace {

constexpr std::size_t MAX_HEAD = 8192; // bytes of a request
constexpr int SECONDS = 30;            // that a client may take to send or receive

template <class T>
T number(const std::string& name, const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, failed] = std::from_chars(text.data(), end, value);
  if (failed != std::errc() || stop != end) {
    throw arforge::Error(arforge::Code::request, name + ": '" + text + "' is not a number that fits");
  }
  return value;
}

// Of "GET /?class=3&seed=1 HTTP/1.1". `ids` keeps numbers that the request refers to.
arforge::Request request_of(const std::string& head, int client, std::vector<std::int64_t>& ids) {
  arforge::Request request;
  const std::map<std::string, std::function<void(const std::string& name, const std::string& value)>> parameters = {
      {"class", [&](auto& name, auto& value) { request.classes = {number<std::int64_t>(name, value)}; }},
      {"ids",
       [&](auto& name, auto& value) {
         ids.clear();
         for (std::size_t start = 0, end = 0; start <= value.size(); start = end + 1) {
           end = std::min(value.find(',', start), value.size());
           ids.push_back(number<std::int64_t>(name, value.substr(start, end - start)));
         }
         request.ids = {{ids.data(), static_cast<std::int64_t>(ids.size())}};
       }},
      {"seed", [&](auto& name, auto& value) { request.seeds = {number<std::uint64_t>(name, value)}; }},
      {"guidance", [&](auto& name, auto& value) { request.guidance = number<double>(name, value); }},
      {"temperature", [&](auto& name, auto& value) { request.temperature = number<double>(name, value); }},
      {"top_k", [&](auto& name, auto& value) { request.top_k = number<std::int64_t>(name, value); }},
      {"top_p", [&](auto& name, auto& value) { request.top_p = number<double>(name, value); }},
      {"schedule", [&](auto&, auto& value) { request.schedule = value; }},
  };
  if (head.rfind("GET /", 0) != 0) {
    throw arforge::Error(arforge::Code::request, "send GET /?class=N|ids=N,N&seed=N&schedule=TEXT&guidance=X");
  }
  const std::size_t end = head.find_first_of(" \r\n", 5);
  for (std::size_t next = 0, start = std::min(head.find('?'), end); start < end; start = next) {
    next = std::min(head.find('&', start + 1), end);
    const std::string part = head.substr(start + 1, next - start - 1);
    const std::size_t equals = std::min(part.find('='), part.size());
    const auto found = parameters.find(part.substr(0, equals));
    if (found == parameters.end()) {
      throw arforge::Error(arforge::Code::request, "no such parameter: " + part.substr(0, equals));
    }
    found->second(found->first, part.substr(std::min(equals + 1, part.size())));
  }
  request.progress = [client](std::int64_t, std::int64_t) {
    char byte = 0;
    return recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0; // 0: the client has hung up
  };
  return request;
}

// The pixels of one image as a portable pixmap, or what is wrong, with its status.
std::string answer(arforge::Runner& runner, const std::string& head, int client) {
  std::string status = "200 OK", type = "image/x-portable-pixmap", body;
  std::vector<std::int64_t> ids;
  try {
    const arforge::Result result = runner.generate(request_of(head, client, ids));
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
  const char* rest = reply.data();
  for (ssize_t size = 1; size > 0; rest += size) {
    size = send(client, rest, static_cast<std::size_t>(reply.data() + reply.size() - rest), MSG_NOSIGNAL);
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
