// Where results go: tried before the work, and written whole or not at all where a regular file is meant.
//
// What is no regular file (a device, a pipe, /dev/stdout) is written to, as cp and the shell's redirection do. Links
// are followed. An existing file keeps its owner, group and mode; one in a folder that may not be written is written in
// place.
#pragma once

#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct OutputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws OutputError unless every output, a path by its option, can be written, each at a place of its own. Empty paths
// are not asked for.
void check_outputs(const std::vector<std::pair<std::string, std::string>>& outputs);

// Whether a path stands for this process's own standard output.
bool is_standard_output(const std::string& path);

// A file that takes the place of `path` when it is finished; devices and pipes get what is written at once. All throw
// OutputError where it cannot be written.
class Output {
public:
  explicit Output(const std::string& path);
  Output(Output&&) noexcept;
  ~Output(); // one that is not finished leaves nothing behind

  std::ostream& stream();
  void finish();

private:
  struct File;
  std::unique_ptr<File> file_;
};
