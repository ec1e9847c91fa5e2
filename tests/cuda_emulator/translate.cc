// Finds the kernels and constants of a source and generates the code that launches and exports them.
#include "translate.h"

#include <ctype.h>

#include <algorithm>
#include <set>
#include <vector>

namespace {

bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

// Splits source into words, literals and single other characters, without white space and line markers.
std::vector<std::string> tokens_of(const std::string& text) {
    std::vector<std::string> tokens;
    for (size_t i = 0; i < text.size();) {
        size_t start = i;
        if (text[i] == '#' && (i == 0 || text[i - 1] == '\n')) {
            i = text.find('\n', i);
            if (i == std::string::npos) break;
        } else if (text[i] == '"' || text[i] == '\'') {
            for (i++; i < text.size() && text[i] != text[start]; i++)
                if (text[i] == '\\') i++;
            i++;
            tokens.push_back(text.substr(start, i - start));
        } else if (is_word(text[i])) {
            while (i < text.size() && is_word(text[i])) i++;
            tokens.push_back(text.substr(start, i - start));
        } else if (isspace((unsigned char)text[i])) i++;
        else tokens.push_back(std::string(1, text[i++]));
    }
    return tokens;
}

// The index after the parenthesis that closes the one at `open`.
size_t after_parentheses(const std::vector<std::string>& tokens, size_t open) {
    int depth = 0;
    for (size_t i = open; i < tokens.size(); i++) {
        if (tokens[i] == "(") depth++;
        if (tokens[i] == ")" && --depth == 0) return i + 1;
    }
    return tokens.size();
}

// The first argument of __launch_bounds__(...), as source text.
std::string first_argument(const std::vector<std::string>& tokens, size_t open) {
    std::string text;
    int depth = 0;
    for (size_t i = open; i < tokens.size(); i++) {
        if (tokens[i] == "(") depth++;
        if (tokens[i] == ")") depth--;
        if (depth == 0 || (depth == 1 && tokens[i] == ",")) break;
        if (i > open) text += tokens[i] + " ";
    }
    return text;
}

bool is_template(const std::vector<std::string>& tokens, size_t at) {
    while (at-- > 0) {
        if (tokens[at] == ";" || tokens[at] == "}" || tokens[at] == "{") return false;
        if (tokens[at] == "template") return true;
    }
    return false;
}

std::string launcher(const std::string& kernel, const std::string& bound) {
    return "extern \"C\" void emulated_launch_" + kernel + "(const EmulatedShape& shape, void** arguments) {\n" +
           "    emulated::launch(" + kernel + ", \"" + kernel + "\", shape, arguments);\n}\n" +
           "extern \"C\" { int emulated_threads_" + kernel + " = " + bound + "; }\n";
}

// Generates launchers for all kernels that are not templates.
std::string launchers(const std::vector<std::string>& tokens) {
    std::string text;
    std::set<std::string> seen;
    for (size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i] != "__global__" || is_template(tokens, i)) continue;
        std::string bound = "1024";
        for (size_t next = i + 1; next + 1 < tokens.size(); next++) {
            if (tokens[next + 1] != "(") continue;
            const std::string& word = tokens[next];
            if (word == "__launch_bounds__") bound = first_argument(tokens, next + 1);
            else if (word != "alignas" && word != "__attribute__") {
                if (seen.insert(word).second) text += launcher(word, bound);
                break;
            }
            next = after_parentheses(tokens, next + 1) - 1;
        }
    }
    return text;
}

// Returns `T* const name = ...` for the tokens of `extern __shared__ T name[]`, and nothing for other tokens.
std::string pointer_to_shared(const std::vector<std::string>& tokens) {
    size_t size = tokens.size();
    bool is_extern = std::count(tokens.begin(), tokens.end(), "extern") > 0;
    if (!is_extern || size < 4 || tokens[size - 1] != "]" || tokens[size - 2] != "[") return "";
    std::string type;
    for (size_t i = 0; i < size - 3; i++) {
        if (tokens[i] == "__align__" || tokens[i] == "alignas") i = after_parentheses(tokens, i + 1) - 1;
        else if (tokens[i] != "extern" && tokens[i] != "__shared__") type += tokens[i] + " ";
    }
    return type + "* const " + tokens[size - 3] + " = reinterpret_cast<" + type + "*>(emulated::dynamic_shared)";
}

// Turns each `extern __shared__` array into a pointer to the block's dynamic shared memory.
std::string place_dynamic_shared(const std::string& text) {
    std::string placed;
    size_t done = 0;
    for (size_t at = text.find("__shared__"); at != std::string::npos; at = text.find("__shared__", at + 1)) {
        size_t start = text.find_last_of(";{}\n", at) + 1, end = std::min(text.find(';', at), text.size());
        std::string pointer = pointer_to_shared(tokens_of(text.substr(start, end - start)));
        if (pointer.empty() || start < done) continue;
        placed += text.substr(done, start - done) + pointer;
        done = end;
    }
    return placed + text.substr(done);
}

// The address and size of each __constant__ variable.
std::string globals(const std::vector<std::string>& tokens) {
    std::string text;
    for (size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i] != "__constant__") continue;
        size_t end = i + 1;
        while (end < tokens.size() && tokens[end] != "[" && tokens[end] != "=" && tokens[end] != ";") end++;
        const std::string& name = tokens[end - 1];
        text += "extern \"C\" { void* emulated_global_" + name + "[2] = {(void*)&" + name + ", (void*)sizeof(" +
                name + ")}; }\n";
    }
    return text;
}

}  // namespace

std::string translate(const std::string& preprocessed, int architecture, bool is_virtual) {
    std::vector<std::string> tokens = tokens_of(preprocessed);
    // The namespace is unnamed, so that shared arrays of templates have the same linkage as all others.
    return "#include \"device.h\"\nnamespace {\n" + place_dynamic_shared(preprocessed) + "\n}\n# 1 \"launchers\"\n" +
           launchers(tokens) + globals(tokens) +
           "extern \"C\" { int emulated_architecture = " + std::to_string(architecture) +
           ", emulated_is_virtual = " + std::to_string(is_virtual) + "; }\n";
}
