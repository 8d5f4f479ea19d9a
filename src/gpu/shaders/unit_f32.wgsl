fn key_unit(row: u32, unit: u32) -> vec4<f32> {
    let at = row + 4u * unit;
    return bitcast<vec4<f32>>(vec4<u32>(keys[at], keys[at + 1u], keys[at + 2u], keys[at + 3u]));
}

fn value_unit(row: u32, unit: u32) -> vec4<f32> {
    let at = row + 4u * unit;
    return bitcast<vec4<f32>>(vec4<u32>(values[at], values[at + 1u], values[at + 2u], values[at + 3u]));
}
