// The numbers that kernels get beside their buffers, for hosts and kernels alike. 4-byte members.
#pragma once

struct AttentionParams {
  int num_q_heads;
  int num_kv_heads;
  int group;          // query heads per KV head
  int block_shift;    // log2 of the block size
  int num_blocks;
  int max_blocks;     // entries in a row of the tables
  int num_sequences;
  int num_rows;       // of q, padding included
  int tile_rows;      // rows of a sequence that one threadgroup serves
  int part_size;      // positions in a part of a context
  int max_parts;      // parts of a context that scratch has room for
  int window;         // positions that a row sees, itself included; 0: all
  int has_sinks;
  float scale;        // of a dot product; times log2(e) unless there is a soft-cap
  float softcap;
};

struct WriteParams {
  int key_vectors;    // 16-byte vectors in a row of keys
  int value_vectors;
  int num_slots;      // slots of the pools
};

struct CopyParams {
  int block_vectors;  // 16-byte vectors in a block
  int num_blocks;
};

struct NormRopeParams {
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int pairs;          // that turn
  int traditional;
  int norms_queries;
  int norms_keys;
  int num_slots;      // slots of the pools
  float eps;
  float scale;        // of positions
};

struct AddNormParams {
  int vectors;        // of 16 bytes in a row
  float eps;
};

struct GateParams {
  int vectors;        // of 16 bytes in half a row
};

struct SampleParams {
  int vocabulary;
  int rule_rows;      // the others are greedy
  int by_vectors;     // every row begins at a multiple of 16 bytes
  int parts;          // of a row
};

#define SAMPLE_PART_CHUNKS 512  // 16-byte vectors of logits in a part
#define SAMPLE_PART_BINS 32     // one for each lane
#define SAMPLE_ROUNDS 2         // in which parts cut the range of keys
#define SAMPLE_CANDIDATE_CHUNKS 128  // vectors of logits that a part has room for: one for each thread
#define SAMPLE_RULES 5          // numbers in a row of rules

// Bounds of part_size.
#define SMALLEST_PART 64
#define LARGEST_PART 4096
