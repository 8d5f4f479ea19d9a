// Nibbles as places in a table of signed bytes (`quant::iq4`).
const TABLE = array<u32, 16>(TABLE_VALUES);

fn looked_up(v: u32) -> u32 {
    var table = TABLE;
    return table[v & 15u] | (table[(v >> 8u) & 15u] << 8u) | (table[(v >> 16u) & 15u] << 16u)
        | (table[(v >> 24u) & 15u] << 24u);
}

fn looked_up_four(v: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(looked_up(v.x), looked_up(v.y), looked_up(v.z), looked_up(v.w));
}
