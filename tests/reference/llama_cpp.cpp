// What llama.cpp makes of a GGUF: the reference behind llama_cpp.py, which says how to build this.
//
//   tool logits MODEL IDS OUT [f32|f16|q8_0] [chunk]   every position's logits, raw little-endian f32 [T][V]
//   tool quantize IN OUT TYPE [pure]                   Q8_0, Q4_0, Q4_K_M and so on
//   tool tokenize MODEL                                NUL-terminated texts in, a line of ids each out; every text
//                                                      three times: as text, with special tokens, and with BOS too
//
// Logits: CPU, one thread, flash attention off, the KV cache in the given type (f32).
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>
#include <vector>

static int fail(const std::string & what) {
    fprintf(stderr, "%s\n", what.c_str());
    return 1;
}

static llama_model * load(const char * path, bool vocab_only) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    params.vocab_only = vocab_only;
    // NO_REPACK=1: the plain dot products of the file's own layout instead of interleaved rows.
    params.use_extra_bufts = !getenv("NO_REPACK");
    return llama_model_load_from_file(path, params);
}

static int logits(int argc, char ** argv) {
    llama_model * model = load(argv[0], false);
    if (!model) return fail("cannot load");
    std::vector<llama_token> ids;
    for (char * p = argv[1]; *p;) {
        ids.push_back(strtol(p, &p, 10));
        if (*p == ',') ++p;
    }
    const std::string kv = argc > 3 ? argv[3] : "f32";
    const size_t chunk = argc > 4 ? atoi(argv[4]) : ids.size();
    llama_context_params params = llama_context_default_params();
    params.n_ctx = ids.size() + 8;
    params.n_batch = params.n_ubatch = ids.size();
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = kv == "f32" ? GGML_TYPE_F32 : kv == "f16" ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) return fail("no context");
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    FILE * out = fopen(argv[2], "wb");
    if (!out) return fail("cannot write");
    llama_batch batch = llama_batch_init(ids.size(), 0, 1);
    for (size_t at = 0; at < ids.size(); at += chunk) {
        int n = 0;
        for (size_t i = at; i < ids.size() && i < at + chunk; ++i, ++n) {
            batch.token[n] = ids[i];
            batch.pos[n] = i;
            batch.n_seq_id[n] = 1;
            batch.seq_id[n][0] = 0;
            batch.logits[n] = 1;
        }
        batch.n_tokens = n;
        if (llama_decode(context, batch)) return fail("decode failed");
        for (int i = 0; i < n; ++i) fwrite(llama_get_logits_ith(context, i), 4, vocab, out);
    }
    fclose(out);
    return 0;
}

static int quantize(int argc, char ** argv) {
    static const std::map<std::string, llama_ftype> types = {
        {"F32", LLAMA_FTYPE_ALL_F32},        {"F16", LLAMA_FTYPE_MOSTLY_F16},     {"BF16", LLAMA_FTYPE_MOSTLY_BF16},
        {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},   {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},   {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
        {"Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},   {"Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},   {"Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K},
        {"Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S},
        {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"Q5_K_S", LLAMA_FTYPE_MOSTLY_Q5_K_S}, {"Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M}, {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},
    };
    if (!types.count(argv[2])) return fail("unknown type");
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = types.at(argv[2]);
    params.nthread = 1;
    params.pure = argc > 3 && !strcmp(argv[3], "pure");
    return llama_model_quantize(argv[0], argv[1], &params);
}

static int tokenize(char ** argv) {
    llama_model * model = load(argv[0], true);
    if (!model) return fail("cannot load");
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::string text;
    while (std::getline(std::cin, text, '\0')) {
        for (int mode = 0; mode < 3; ++mode) {
            std::vector<llama_token> ids(text.size() + 8);
            const int n = llama_tokenize(vocab, text.data(), text.size(), ids.data(), ids.size(), mode == 2, mode > 0);
            if (n < 0) return fail("too many tokens");
            for (int i = 0; i < n; ++i) printf(i ? " %d" : "%d", ids[i]);
            printf("\n");
        }
    }
    return 0;
}

int main(int argc, char ** argv) {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level >= GGML_LOG_LEVEL_ERROR || getenv("VERBOSE")) fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "logits" && argc > 4) return logits(argc - 2, argv + 2);
    if (what == "quantize" && argc > 4) return quantize(argc - 2, argv + 2);
    if (what == "tokenize" && argc > 2) return tokenize(argv + 2);
    return fail("usage: tool logits|quantize|tokenize ...");
}
